"""Which rows a step asks for: rollout plans, and what they may learn from."""
