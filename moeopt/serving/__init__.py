"""Placement files of serving systems: what they load, and back to plans."""
