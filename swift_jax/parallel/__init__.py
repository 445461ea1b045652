"""The target on its devices: how it is split over them, and how processes meet.

It may import `config` and `model`.
"""
