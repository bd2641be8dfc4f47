"""Shipped instances (data only)."""
