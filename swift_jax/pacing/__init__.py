"""What passes cost on this machine, and every decision that goes by it.

This is the host's side of decoding: costs measured once, the clock that corrects
them, the governor that keeps the account, and draft programs without gates. It may
import `decoding`, `checkpoint` and `files`, and does not know the search.
"""
