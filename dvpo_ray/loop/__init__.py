"""The driver and what it steps through."""
