"""Every setting, its default and the check that refuses a wrong value.

These are the settings of model, decoding, drafting, search and sampling. Nothing
here computes with arrays. It imports nothing of the package but its root.
"""
