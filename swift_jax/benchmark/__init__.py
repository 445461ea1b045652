"""Tools of the benchmark: timing in turns, models, prompts and processes.

The suites themselves are in `benchmark.suites`. It may import `runtime`, `demo` and
`evaluation`.
"""
