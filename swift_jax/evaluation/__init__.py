"""Tasks asked of an engine, and the answers kept so that nothing is lost.

A run goes on where it stopped. It may import `runtime` and what stands lower.
"""
