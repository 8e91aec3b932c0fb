"""Pixel-wise anomaly detection for off-road robots: analysis by synthesis."""

__version__ = "0.1.0"
