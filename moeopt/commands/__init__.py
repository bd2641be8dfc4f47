"""The commands, a module for each family; :mod:`moeopt.cli` puts them together."""
