"""Files of a search: skip sets, records of scoring passes, and the state.

This folder may import `files` and `model`, and nothing of the search itself.
"""
