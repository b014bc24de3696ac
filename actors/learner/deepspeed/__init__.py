"""What is of DeepSpeed alone."""
