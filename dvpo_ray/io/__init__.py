"""Files, digests and HTTP: what the rest is written down and sent with."""
