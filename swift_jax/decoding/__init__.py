"""One round on the device: choose, draft, verify, commit; and drawing a token.

All code here is traced and compiled. The acceptance rule is in `verification`.
This folder may import `model` and `parallel`, and does not know the search.
"""
