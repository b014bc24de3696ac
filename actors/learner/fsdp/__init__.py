"""What is of FSDP2 alone."""
