"""What the parent and the worker hand to each other: plain data in one folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moeopt.problem import ProblemData
from moeopt.solvers.base import SolveResult, SolveSettings

if TYPE_CHECKING:
    from moeopt.solution import Solution

JOB_FILE = "job.pkl"
RESULT_FILE = "result.pkl"
INCUMBENT_FILE = "incumbent.json"


@dataclass
class Job:
    """One solve. ``began`` is the parent's ``time.monotonic()``, from which the limit counts."""

    data: ProblemData
    formulation: str
    solver: str
    settings: SolveSettings
    relax: bool
    start: Solution | None
    log_path: str | None
    began: float
    parent_pid: int


@dataclass
class Report:
    """What the worker achieved; ``seconds`` by phase (start, build, compile, solve)."""

    result: SolveResult | None = None
    size: dict[str, int] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    solver_version: str | None = None
    peak_memory_mib: float | None = None
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    input_error: list[str] = field(default_factory=list)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
