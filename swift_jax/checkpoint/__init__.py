"""A model's files: found, fetched, read into (sharded) arrays, and written.

Hugging Face's form is read and written, Orbax's both ways. Other weights are refused
by name. It may import `model`, `parallel` and what they import.
"""
