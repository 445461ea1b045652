"""The official code's search, to compare with ours.

`recipe` is its schedule, `process` its Gaussian process. It may import `search`.
"""
