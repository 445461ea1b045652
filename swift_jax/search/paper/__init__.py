"""The official code's search, to compare ours with.

`recipe` has its schedule, `process` its Gaussian process. This folder may
import `search`.
"""
