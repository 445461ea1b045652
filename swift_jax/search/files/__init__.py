"""What a search leaves on a disk: found sets, records of its passes, its state.

It may import `files` and `model`, and nothing of the search itself.
"""
