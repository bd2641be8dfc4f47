"""The key of a cell: a hash of everything that decides its result."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from moeopt import __version__
from moeopt.catalog import load_formulation
from moeopt.study.cells import HALF_KEY

#: Distribution of each solver, whose version is asked for without loading it.
_DISTRIBUTIONS = {"highs": "highspy", "cpsat": "ortools"}


def cell_key(
    instance_sha256: str,
    problem: str,
    formulation: str | None,
    solver: str | None,
    settings: dict[str, Any],
    seed: int,
) -> str:
    """Return 64 hex digits: half of them for the cell, half for the versions.

    The instance counts by its content, a formulation by the content of its files.
    """
    identity = {
        "instance_sha256": instance_sha256,
        "problem": problem,
        "formulation": formulation,
        "solver": solver,
        "settings": settings,
        "seed": seed,
    }
    return _hash(identity) + versions_hash(formulation, solver)


@functools.cache
def versions_hash(formulation: str | None, solver: str | None) -> str:
    """Return the half of the key that changes with moeopt, the solver and the formulation.

    Where ``solve`` chooses (None), both solvers count.
    """
    solvers = sorted(_DISTRIBUTIONS) if solver is None else [solver]
    versions = {
        "moeopt": __version__,
        "solvers": {name: version(_DISTRIBUTIONS[name]) for name in solvers},
        "formulation_sha256": None if formulation is None else formulation_sha256(formulation),
    }
    return _hash(versions)


def formulation_sha256(name_or_path: str) -> str:
    """Return the hash of a formulation's file and of the files beside it that it imports."""
    files = sorted(_sources(_file(load_formulation(name_or_path))))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _file(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


def _sources(path: Path) -> set[Path]:
    """Return a file and what it imports from its own folder, and so on."""
    found: set[Path] = set()
    pending = [path]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            beside = (path.with_name(f"{name.rpartition('.')[2]}.py") for name in names)
            pending += [file for file in beside if file.is_file()]
    return found


def _hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HALF_KEY]
