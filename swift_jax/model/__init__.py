"""The Llama in Flax: layers, cache, skip mask and whole-number weights.

One pass over tokens begins and ends here; no text and no file is known. It may
import `config`.
"""
