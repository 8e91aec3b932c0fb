"""What a detector is taught after it was fitted: nominal frames, and places pointed at."""
