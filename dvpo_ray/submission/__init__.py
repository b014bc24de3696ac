"""What is sent to a cluster with a job."""
