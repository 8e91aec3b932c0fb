"""Recordings: reading camera frames out of them, and writing a new one with what was found."""
