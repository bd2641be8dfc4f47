"""Plan and bound ``affinity`` within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.affinity import columns
from moeopt.affinity.bounding import AffinityBound, column_value, level_weights, psd_value
from moeopt.affinity.data import AffinityData, IntArray
from moeopt.affinity.evaluate import evaluate
from moeopt.affinity.search import find_plan, within

Stop = Callable[[], bool]

#: Share of the time for the search; a walk more is not begun after it.
_SEARCH_SHARE = 0.4
#: Chains of more layers are bounded as a whole only: that is stronger than their pairs one by one.
_MOST_PAIRS = 1


@dataclass(frozen=True)
class Affined:
    """A plan, shape (L, E), or None where none was found; and bounds, each with its proof."""

    place: IntArray | None
    bounds: list[AffinityBound]


def solve_affinity(
    data: AffinityData,
    *,
    seed: int = 0,
    time_limit_s: float = np.inf,
    rounds: int = 4,
    stop: Stop = lambda: False,
) -> Affined:
    """Search, then bound with the methods that suit the shape.

    Parameters
    ----------
    time_limit_s : float
        Looked at between walks and between steps of a bound; the first walk is always made.
    """
    begin = time.monotonic()

    def late() -> bool:
        return stop() or time.monotonic() - begin > time_limit_s

    share = _SEARCH_SHARE * time_limit_s
    place = find_plan(data, seed=seed, time_limit_s=share, rounds=rounds, stop=stop)
    bounds = affinity_bounds(data, stop=late)
    return Affined(_best_plan(data, place, bounds), bounds)


def affinity_bounds(data: AffinityData, *, stop: Stop = lambda: False) -> list[AffinityBound]:
    """Semidefinite bound, and the column bound where its sets can be listed."""
    bounds = [psd_value(data, stop=stop)]
    listed = columns.supports(data.experts, data.gpus) is None
    if listed and (data.kind == "intra" or len(data.flow) <= _MOST_PAIRS) and not stop():
        bounds.append(column_value(data, stop=stop))
    return bounds


def _best_plan(
    data: AffinityData, place: IntArray | None, bounds: list[AffinityBound]
) -> IntArray | None:
    """Put in what a bound met that is better, layer by layer."""
    if place is None:
        return None
    for bound in bounds:
        for l, rows in enumerate(bound.rows or []):
            if rows is None:
                continue
            plan = place.copy()
            plan[l : l + (2 if data.kind == "inter" else 1)] = rows
            if (
                within(data, plan)
                and evaluate(data, plan).objective < evaluate(data, place).objective
            ):
                place = plan
    return place


def proof_of(data: AffinityData, bound: AffinityBound) -> str:
    """Say in one line why a bound holds."""
    of = "nodes and GPUs" if len(level_weights(data)) > 1 else "GPUs"
    if bound.method == "psd":
        what = "a chain of matrices" if data.kind == "inter" else "a matrix for each layer"
        return f"shared {of} are {what} that are positive semidefinite"
    parts = "pairs of layers" if data.kind == "inter" else "layers"
    return f"all sets of experts that a GPU can hold, priced in whole numbers; {parts} one by one"
