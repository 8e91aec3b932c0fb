"""How far an image is from its edits: cosine, whitened, novelty, and by pixels."""
