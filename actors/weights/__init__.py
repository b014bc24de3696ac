"""The way of weights from learners to engines."""
