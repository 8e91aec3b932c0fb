"""Variants of a profile measured beside each other: quality against cost."""
