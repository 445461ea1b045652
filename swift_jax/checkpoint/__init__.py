"""Finds and fetches a model's files, reads them into (sharded) arrays, writes them.

The forms are Hugging Face's and Orbax's, both for reading and for writing. Weights
of other forms are refused by name. It may import `model`, `parallel` and their
imports.
"""
