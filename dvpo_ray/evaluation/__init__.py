"""Held-out evaluation, and the best of several answers."""
