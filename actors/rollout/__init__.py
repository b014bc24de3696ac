"""vLLM engines that generate answers."""
