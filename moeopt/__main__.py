"""``python -m moeopt``: the command line."""

from moeopt.cli import main

if __name__ == "__main__":
    main()
