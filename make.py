#!/usr/bin/env python3
"""One command for each chore: ``python3 make.py demo`` or ``test``.

Needs Python >= 3.11 and a package index, nothing else: it makes a virtual environment in ``.venv``
(unless one is active), installs moeopt into it, and runs the chore there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".venv"

DEMO = [
    "solve",
    "mixtral-8x7b_4gpu_azure",
    "--problem",
    "joint",
    "--time-limit",
    "60",
]


def python() -> str:
    """Return the interpreter of the active virtual environment, or of our own."""
    if sys.prefix != sys.base_prefix:
        return sys.executable
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    if not (HOME / name).exists():
        print(f"making a virtual environment in {HOME.name}", file=sys.stderr)
        venv.create(HOME, with_pip=True)
    return str(HOME / name)


def install(interpreter: str, extra: str) -> None:
    """Install moeopt (editable) once for each state of pyproject.toml."""
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    prefix = subprocess.run(
        [interpreter, "-c", "import sys; print(sys.prefix)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    mark = Path(prefix) / f".moeopt-installed{extra}"
    if mark.exists() and mark.read_text() == state:
        return
    print("installing moeopt and what it needs", file=sys.stderr)
    subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}{extra}"],
        check=True,
        cwd=ROOT,
    )
    mark.write_text(state)


def demo(interpreter: str, rest: list[str]) -> int:
    """Run the main job on a shipped real instance."""
    install(interpreter, "")
    return subprocess.run([interpreter, "-m", "moeopt", *DEMO, *rest], check=False).returncode


def test(interpreter: str, rest: list[str]) -> int:
    """Run the fast tests (arguments go to pytest; ``-m slow`` runs the slow ones)."""
    install(interpreter, "[dev]")
    # Tests with time limits should not pay for numba's first compilation.
    subprocess.run([interpreter, "-m", "moeopt.kernels"], check=True, cwd=ROOT)
    # Whole files to each worker, in the order of tests/conftest.py.
    workers = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [interpreter, "-m", "pytest", *workers, *rest]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def lint(interpreter: str, rest: list[str]) -> int:
    """Check style and types."""
    install(interpreter, "[dev]")
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])
    codes = [
        subprocess.run([interpreter, "-m", *check, *rest], check=False, cwd=ROOT).returncode
        for check in checks
    ]
    return max(codes)


CHORES = {"demo": demo, "test": test, "lint": lint}


def main() -> int | str:
    """Run the chore that the command line names."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything is installed)
        sys.exit("moeopt needs Python 3.11 or newer")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "chore", choices=CHORES, help="; ".join(f"{k}: {v.__doc__}" for k, v in CHORES.items())
    )
    arguments, rest = parser.parse_known_args()
    try:
        return CHORES[arguments.chore](python(), rest)
    except subprocess.CalledProcessError as error:
        return f"{arguments.chore}: {' '.join(error.cmd[:5])} … failed, see above"


if __name__ == "__main__":
    sys.exit(main())
