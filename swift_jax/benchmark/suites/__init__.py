"""The benchmark's suites, one a file: each gives figures and tables.

It may import `benchmark` and what that imports.
"""
