"""What scores mean: their distribution on nominal images, files of it, live, and drift."""
