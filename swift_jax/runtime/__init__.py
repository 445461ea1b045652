"""From prompts to results: the engine, the batch being written, its text and figures.

`engine` is what users call and `session` the loop that it runs; decoding, pacing and
the search meet there. It may import all that stands lower.
"""
