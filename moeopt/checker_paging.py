"""The checker of ``paging``: evictions replayed, loads counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moeopt.checker_dispatch import Violation
from moeopt.files import LINES_OF_A_KIND
from moeopt.problem import ProblemData
from moeopt.solution import Solution
from moeopt.solution_paging import evictions_of_solution

#: How the objective was computed.
REPLAYED = "exact: evictions replayed"


@dataclass(frozen=True)
class PagingCheck:
    """What is wrong, the objective (misses, or microseconds; rounded up) and details."""

    violations: list[Violation]
    objective: float
    details: dict[str, Any]


def check_evictions(data: ProblemData, solution: Solution) -> PagingCheck:
    """Replay the evictions, beginning with an empty cache; an expert that is missing is loaded.

    Raises
    ------
    InputError
        The solution has no evictions, or they name what does not exist.
    """
    from moeopt.balance.exact import float_above
    from moeopt.paging.replay import Replay, replay

    paging = data.paging
    if paging is None:
        raise ValueError("there are no requests to serve")
    evictions = evictions_of_solution(data, solution)
    found: Replay = replay(paging.requests, paging.cache, evictions)
    misses = found.misses_by_layer(paging.requests)

    def violations() -> Iterator[Violation]:
        for i in found.absent[:LINES_OF_A_KIND].tolist():
            t, page = evictions[i].tolist()
            layer, expert = divmod(page, data.experts)
            where = f"evictions[{i}]"
            text = f"{where}: expert {expert} of layer {layer} is not in the cache at request {t}"
            yield Violation("eviction_absent", where, 1, text)
        for t, held in found.full[:LINES_OF_A_KIND].tolist():
            where = f"request {t}"
            text = f"{where}: {held} experts in a cache of {paging.cache}"
            yield Violation("cache_exceeded", where, held - paging.cache, text)

    cost = paging.cost(misses)
    details = {
        "memory": {"experts_mib": [paging.cache * data.expert_mib]},
        "misses": int(misses.sum()),
        "uses": len(paging.requests.page),
        "misses_by_layer": misses.tolist(),
    }
    return PagingCheck(list(violations()), float_above(cost), details)


def summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, as (label, text), from :attr:`PagingCheck.details`."""
    misses, uses = details["misses"], details["uses"]
    return [("misses", f"{misses:,} of {uses:,} ({misses / uses:.4%})")]
