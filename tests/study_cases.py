"""Small studies for the tests: their files, their runs, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "instances" / "smoke"

#: Cells of hundredths of a second: no plan can exist, so no solver is started.
QUICK = """
[study]
name = "quick"
title = "Quick cells"
[[cells]]
instances = ["smoke_replication_infeasible"]
problem = "replication"
seeds = {seeds}
"""
#: Cells of a second or two: most of it is the start of a solver's process.
SOLVED = """
[study]
name = "solved"
[defaults]
time_limit_s = 60
[[cells]]
instances = ["smoke_replication_pairs"]
problem = "replication"
formulations = ["replication_matching"]
seeds = {seeds}
"""


def write_study(folder: Path, text: str, **fields: Any) -> Path:
    """Write a study file; fields in braces are filled in where there are any."""
    path = folder / "study.toml"
    path.write_text(text.format(**fields) if fields else text, encoding="utf-8")
    return path


def batch(
    *arguments: object, env: dict[str, str] | None = None, timeout_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run ``moeopt batch`` to its end; no traceback, whatever happens."""
    done = moeopt("batch", *arguments, env=env, timeout_s=timeout_s)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def moeopt(
    *arguments: object, env: dict[str, str] | None = None, timeout_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of moeopt."""
    return subprocess.run(
        [sys.executable, "-m", "moeopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "160"} | (env or {}),
        timeout=timeout_s,
    )


def start_batch(*arguments: object) -> subprocess.Popen[str]:
    """Start ``moeopt batch``."""
    return subprocess.Popen(
        [sys.executable, "-m", "moeopt", "batch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of an error that is the user's."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def record_paths(study: Path) -> list[Path]:
    """Return the files of all records."""
    cells = study.with_suffix(".results") / "cells"
    return sorted(p for p in cells.glob("*/*.json") if p.name.count(".") == 1)
