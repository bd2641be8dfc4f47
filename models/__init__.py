"""The formulations: one file each, found by their names (docs/architecture.md)."""

if __name__ != "moeopt.models":
    raise ImportError("import the formulations as moeopt.models: this folder is part of moeopt")
