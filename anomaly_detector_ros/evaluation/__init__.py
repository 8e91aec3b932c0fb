"""Labelled data sets, metrics, and how methods do by them."""
