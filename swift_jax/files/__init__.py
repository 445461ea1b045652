"""Files that are complete or not there, however their writer ends.

The package has atomic writes, locks that end with their process, and checks of the
fields of JSON files. It may import `config`, for its checks.
"""
