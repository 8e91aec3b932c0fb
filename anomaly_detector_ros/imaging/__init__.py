"""Pictures and image messages in, renderings out, and what is done from frame to frame."""
