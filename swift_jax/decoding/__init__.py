"""One round on the device: choose, draft, verify, commit; and drawing a token.

All of it is traced and compiled; the acceptance rule is `verification`. It may
import `model` and `parallel`, and does not know the search.
"""
