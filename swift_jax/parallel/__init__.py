"""How weights and cache are split over devices, and how processes find each other.

It may import `config` and `model`.
"""
