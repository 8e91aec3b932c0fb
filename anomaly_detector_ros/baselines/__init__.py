"""Baselines: how unlike the nominal features an image's features are, without any synthesis."""
