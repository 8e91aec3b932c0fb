"""Metrics over the pixels and components of a data set, with intervals."""
