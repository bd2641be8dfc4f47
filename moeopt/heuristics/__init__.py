"""Plans by construction and local search; none of them proves anything."""
