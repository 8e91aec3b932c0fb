"""Labelled data sets and metrics."""
