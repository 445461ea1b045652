"""Reports of finished runs: scores, speedups, equality of texts, tables, pictures.

It reads answers and records, and runs no model. It may import `evaluation`.
"""
