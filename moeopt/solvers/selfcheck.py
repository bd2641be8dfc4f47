"""A two-variable test that every solver must pass, run in a process of its own.

``min 2x + 3z, x + z >= 4.5, z integer`` has the optimum 9; highspy 1.14.0 says 15, "optimal".
"""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import importlib, sys
message = importlib.import_module("moeopt.solvers." + sys.argv[1]).self_check()
print(message or "", end="")
"""


def self_check(solver: str) -> str | None:
    """Return None if the solver passes, else what went wrong."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, solver],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return f"failed: {last[0]}"
    return done.stdout or None
