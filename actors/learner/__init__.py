"""Processes that train."""
