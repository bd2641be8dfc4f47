"""Fewer activated experts: how many of its chosen experts each layer keeps."""
