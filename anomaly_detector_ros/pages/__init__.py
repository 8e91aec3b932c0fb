"""What people look at in a browser: one page of the frames that a command judged."""
