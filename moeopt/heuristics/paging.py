"""Evictions for ``paging``: the offline optimum where all loads cost the same."""

from __future__ import annotations

from collections.abc import Callable

from moeopt.problem import ProblemData
from moeopt.solution import Solution
from moeopt.solution_paging import solution_of_evictions


def evict(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = float("inf"),
    stop: Callable[[], bool] = lambda: False,
) -> Solution:
    """Find evictions (:func:`moeopt.paging.solve.find_evictions`), in one pass.

    Parameters
    ----------
    data : ProblemData
        Of ``paging``, with a cache that holds what is asked for at once.
    seed, time_limit_s, stop
        Not needed: nothing is drawn, and a pass takes a second for a million requests.
    """
    from moeopt.paging.solve import find_evictions

    if data.paging is None:
        raise ValueError("there are no requests to serve")
    return solution_of_evictions(data, find_evictions(data.paging))
