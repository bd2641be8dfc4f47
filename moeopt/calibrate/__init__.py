"""Layer times from tables of GPUs and MoEs, and from a user's own measurements."""
