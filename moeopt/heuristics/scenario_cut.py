"""Fewer scenarios: keep the heaviest that together have a share of the weight.

A plan found on the cut list is a plan; its value is for the full list to say. A lower bound of the
cut list becomes one of the full list by counting every dropped scenario at the least time that any
plan allows it (:func:`valid_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeopt import dispatch
from moeopt.problem import FloatArray, ProblemData, Scenarios

# Sums of at most a few million rounded terms of one sign: far less than this share is lost.
_SAFE = 1.0 - 2.0**-25


@dataclass(frozen=True)
class Cut:
    """What a cut kept.

    Attributes
    ----------
    covered : float array, shape (L,)
        Weight of the scenarios kept, by which theirs were divided.
    kept_least, dropped_least : float arrays, shape (L,)
        Σ weight × least time over the scenarios kept and dropped, in the weights of the full list.
    """

    covered: FloatArray
    kept_least: FloatArray
    dropped_least: FloatArray


def cut(data: ProblemData, share: float) -> tuple[ProblemData, Cut]:
    """Keep the fewest scenarios of each layer that have at least ``share`` of its weight.

    Parameters
    ----------
    share : float
        In (0, 1]. Equal weights: those that come first.

    Returns
    -------
    data : ProblemData
        With the scenarios kept, in their old order; their weights sum to 1 again.
    cut : Cut
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share must be in (0, 1], not {share:g}")
    layers, covered, kept_least, dropped_least = [], [], [], []
    for scenarios in data.scenarios:
        order = np.argsort(-scenarios.weight, kind="stable")
        reached = np.cumsum(scenarios.weight[order])
        count = int(np.searchsorted(reached, share * reached[-1] * (1.0 - 1e-12))) + 1
        kept = np.zeros(len(scenarios), dtype=bool)
        kept[order[:count]] = True
        least = scenarios.weight * _least_times(data, scenarios)
        weight = math.fsum(scenarios.weight[kept].tolist())
        covered.append(weight)
        kept_least.append(math.fsum(least[kept].tolist()))
        dropped_least.append(math.fsum(least[~kept].tolist()))
        layers.append(_keep(scenarios, kept, weight))
    summary = Cut(np.array(covered), np.array(kept_least), np.array(dropped_least))
    return replace(data, scenarios=tuple(layers)), summary


def _keep(scenarios: Scenarios, kept: np.ndarray, weight: float) -> Scenarios:
    row = np.repeat(kept, scenarios.sizes)
    return Scenarios(
        np.concatenate([[0], np.cumsum(scenarios.sizes[kept])]),
        scenarios.expert[row],
        scenarios.tokens[row],
        scenarios.weight[kept] / weight,
    )


def _least_times(data: ProblemData, scenarios: Scenarios) -> FloatArray:
    if data.layer_time.form == "unit":
        return np.asarray(-(-scenarios.sizes // data.gpus), dtype=np.float64)
    known: dict[tuple[int, ...], float] = {}
    times = np.zeros(len(scenarios))
    for s in range(len(scenarios)):
        counts = tuple(sorted(scenarios.counts(s).tolist()))
        if counts not in known:
            known[counts] = dispatch.time_lower_bound(
                data.layer_time, counts, data.gpus, whole=True
            )
        times[s] = known[counts]
    return times


def valid_bound(cut_bound: float | Sequence[float] | FloatArray, summary: Cut) -> float:
    """Lower bound of the full list from a lower bound of the cut list.

    Parameters
    ----------
    cut_bound : float, or one a layer
        Of the expected time of the cut data, summed over its layers or for each.
    summary : Cut

    Returns
    -------
    float

    Notes
    -----
    With c_l the weight covered, T_l the time of layer l on its cut list, m_l ≤ T_l its least, the
    full list costs at least Σ c_l T_l + (dropped at their least). If only b ≤ Σ T_l is known,
    ``Σ c_l T_l = Σ c_l m_l + Σ c_l (T_l − m_l) ≥ Σ c_l m_l + min c_l · (b − Σ m_l)``, where the
    bracket counts as 0 if it is negative.
    """
    dropped = math.fsum(summary.dropped_least.tolist())
    least = math.fsum(summary.kept_least.tolist())
    if np.ndim(cut_bound) == 0:
        unscaled = math.fsum((summary.kept_least / summary.covered).tolist())
        more = float(summary.covered.min()) * (float(np.asarray(cut_bound)) - unscaled)
        return (least + max(0.0, more) + dropped) * _SAFE
    layers = np.maximum(summary.covered * np.asarray(cut_bound), summary.kept_least)
    return (math.fsum(layers.tolist()) + dropped) * _SAFE
