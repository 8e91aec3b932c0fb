"""Measuring detectors on this machine: time, energy, memory, and the rate of arithmetic."""
