"""Fitting to nominal images what needs a whole detector: distances and calibrations."""
