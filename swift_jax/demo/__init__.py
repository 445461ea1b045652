"""The demo model: a small Llama that was trained on two CPU cores.

Its weights, prompts, corpus and trainer are here. It may import `checkpoint` and its
imports.
"""
