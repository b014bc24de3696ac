"""A run's folder, records, clocks and end."""
