"""Feature spaces in which image and edits are compared, tiled and upsampled."""
