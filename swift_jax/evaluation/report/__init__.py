"""What finished runs say: scores, speedups, equality of texts, tables and pictures.

It reads answers and records and runs no model. It may import `evaluation`.
"""
