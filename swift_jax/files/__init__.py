"""Files that are whole or not there, however their writer ends.

Atomic writes, locks that end with their process, and checks of JSON's fields serve
whoever keeps something on a disk. It may import `config`, for its checks.
"""
