"""Training of a diffusion model on nominal images."""
