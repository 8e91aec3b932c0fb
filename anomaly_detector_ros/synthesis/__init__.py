"""Edits of an image that are likely under what a diffusion model learned."""
