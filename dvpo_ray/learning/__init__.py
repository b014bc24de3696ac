"""From scored rows to gradients: batching, advantages and loss sums, independent of how they are distributed."""
