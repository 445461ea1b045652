"""Which sublayers the draft leaves out: scoring sets, proposing them, the schedule.

It runs on the host between dispatches; its only pass of the model is that of
`matchness`. It may import `search.files`, `model` and `parallel`, and does not know
decoding.
"""
