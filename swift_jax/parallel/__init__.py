"""Splits weights and cache over devices, and joins several processes.

It may import `config` and `model`.
"""
