"""Whether it is worth it: what a better map of experts gains on loads it was not made for."""
