"""From prompts to results: the engine, the batch being written, its text and figures.

`engine` is what users call and `session` the loop that it runs. Decoding and pacing
meet the search in its `turns`. It may import all that stands lower.
"""
