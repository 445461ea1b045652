"""Asks an engine the questions of tasks, and keeps each answer as it is written.

A run that stopped goes on where it was. It may import `runtime` and what stands
lower.
"""
