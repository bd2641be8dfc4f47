"""Lower bounds that take work: relaxations with multipliers, searches, certificates."""
