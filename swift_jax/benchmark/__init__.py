"""What the benchmark measures with: timing in turns, models, prompts, processes.

The suites themselves are in `benchmark.suites`. It may import `runtime`, `demo` and
`evaluation`.
"""
