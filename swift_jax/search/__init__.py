"""The search for the sublayers to skip: proposals, scores and the schedule.

It runs on the host between dispatches; only `matchness` runs the model. This
folder may import `search.files`, `model`, `parallel` and the governor of
`pacing`.
"""
