"""Frozen models that score answers."""
