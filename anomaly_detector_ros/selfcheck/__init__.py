"""What a machine is, whether all computes right on it and how fast: the first page of a report."""
