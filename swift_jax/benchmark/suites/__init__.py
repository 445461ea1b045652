"""The benchmark's suites, one in each file; a suite returns figures and tables.

It may import `benchmark` and its imports.
"""
