"""What comes in: folders, pictures, videos and recordings, read alike by every command."""
