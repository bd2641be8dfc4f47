"""Evictions of ``paging`` as they stand in a solution: rows of request, layer, expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.files import LINES_OF_A_KIND, limited
from moeopt.solution import Solution

if TYPE_CHECKING:
    from moeopt.problem import ProblemData


def solution_of_evictions(data: ProblemData, evictions: npt.NDArray[np.int64]) -> Solution:
    """Make a solution of evictions, rows (request, page), shape (n, 2)."""
    layer, expert = np.divmod(evictions[:, 1], data.experts)
    rows = np.stack([evictions[:, 0], layer, expert], axis=1).tolist()
    return Solution(
        instance=data.name,
        instance_sha256=data.sha256,
        problem="paging",
        hosts=[],
        evictions=[(t, l, e) for t, l, e in rows],
    )


def evictions_of_solution(data: ProblemData, solution: Solution) -> npt.NDArray[np.int64]:
    """Return the evictions as rows (request, page), shape (n, 2).

    Raises
    ------
    InputError
        There are none, a request, layer or expert does not exist, or the plan hosts experts.
    """
    if solution.hosts:
        raise InputError("hosts: a plan of paging has none")
    if solution.evictions is None:
        raise InputError("evictions: missing, the problem is paging")
    if data.paging is None:
        raise ValueError("there are no requests to serve")
    rows = np.array(solution.evictions, dtype=np.int64).reshape(-1, 3)
    limits = np.array([len(data.paging.requests), data.layers, data.experts])
    outside = np.flatnonzero(((rows < 0) | (rows >= limits)).any(axis=1))
    lines = [
        f"evictions[{i}]: request {rows[i, 0]}, layer {rows[i, 1]} or expert {rows[i, 2]} does "
        f"not exist (there are {limits[0]}, {limits[1]} and {limits[2]})"
        for i in outside[:LINES_OF_A_KIND].tolist()
    ]
    if lines:
        raise InputError(limited(lines, len(outside)))
    return np.stack([rows[:, 0], rows[:, 1] * data.experts + rows[:, 2]], axis=1)
