"""The Llama in Flax: layers, cache, skip mask and whole-number weights.

This folder computes one pass over tokens; it knows no texts and no files. It
may import `config`.
"""
