"""Traces of serving systems: loads, expert choices and requests, imported into one format each."""
