"""What a study is made of: its cells, and what came of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Hex digits of a key's first half (the cell) and of its second one (the versions).
HALF_KEY = 32


def identity_of(key: str) -> str:
    """Return the half of a key that knows no versions of moeopt, solver and formulation."""
    return key[:HALF_KEY]


@dataclass(frozen=True)
class Cell:
    """One run: an instance × problem × formulation × solver × settings × seed.

    Attributes
    ----------
    instance : str
        The instance's own name.
    formulation, solver : str or None
        None where ``solve`` chooses.
    settings : dict
        ``time_limit_s``, ``gap``, ``threads``, ``memory_limit_mib``, ``start``, ``options``,
        ``measure``.
    key : str
        Hash of everything that decides the result (64 hex digits); its first half is the cell's
        ``identity``.
    """

    instance: str
    problem: str
    formulation: str | None
    solver: str | None
    settings: dict[str, Any]
    seed: int
    key: str

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def identity(self) -> str:
        """Hash of the instance's content, problem, names, settings and seed: no versions."""
        return identity_of(self.key)

    @property
    def label(self) -> str:
        """The cell in words."""
        how = "default" if self.formulation is None else self.formulation
        solver = "" if self.solver is None else f" {self.solver}"
        return f"{self.instance} {self.problem} {how}{solver} seed {self.seed}"


@dataclass(frozen=True)
class CellResult:
    """A cell that has a record. ``folder`` holds ``KEY.json``, ``KEY.solution.json``, ``KEY.log``.

    KEY is ``record["key"]``: another one than the cell's where the record is of other versions.
    """

    cell: Cell
    record: dict[str, Any]
    folder: Path

    @property
    def solution_path(self) -> Path:
        """File of the checked plan; it exists where the record has an upper bound."""
        return self.folder / f"{self.record['key']}.solution.json"

    @property
    def log_path(self) -> Path:
        """What the solver and the cell's process printed."""
        return self.folder / f"{self.record['key']}.log"


@dataclass(frozen=True)
class StudyResults:
    """All cells of a study, in the order of its file, by what came of them.

    Attributes
    ----------
    finished : list of CellResult
        Status other than ``error``.
    skipped : list of (Cell, str)
        What a formulation, a solver or an instance does not support, with the reason.
    missing : list of Cell
        Not run yet.
    failed : list of CellResult
        Status ``error``.
    outdated : list of CellResult
        Those of ``finished`` whose record is of other versions of moeopt, solver or formulation;
        the same instance content, settings and seed all the same.
    """

    name: str
    title: str
    file: Path
    folder: Path
    finished: list[CellResult] = field(default_factory=list)
    skipped: list[tuple[Cell, str]] = field(default_factory=list)
    missing: list[Cell] = field(default_factory=list)
    failed: list[CellResult] = field(default_factory=list)
    outdated: list[CellResult] = field(default_factory=list)
