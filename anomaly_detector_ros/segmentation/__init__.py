"""Segments, over which an anomaly map is averaged: superpixels, SAM, MobileSAM."""
