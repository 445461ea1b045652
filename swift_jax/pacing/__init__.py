"""What passes cost on this machine, and whether drafting pays.

This is the host's side of decoding: costs measured once, the clock that corrects
them, and draft programs without gates. It may import `decoding`, `checkpoint` and
`files`, and does not know the search.
"""
