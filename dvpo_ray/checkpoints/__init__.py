"""Checkpoints of a run: written, verified, kept, copied."""
