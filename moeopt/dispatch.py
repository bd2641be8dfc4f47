"""T(x, scenario): the exact layer time of scenarios under given replicas.

The one place that knows it. How one scenario is evaluated depends on its layer time:

- every expert has one replica: f of sums;
- activations only (``unit``, or tokens that cost nothing): Hall's formula, or a matching;
- tokens only (``b = 0``): max-flow, or its dual formula over sets of GPUs;
- mixed forms (NP-hard): branch and bound, and where it is cut off a deterministic rule, whose
  time is an upper bound; a compiled rule for layers with thousands of them.

T is the maximum over **all** GPUs; an idle one counts as f(0, 0). As f is non-decreasing that only
matters for a scenario without any tokens, whose time is f(0, 0).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_bound import time_lower_bound
from moeopt.dispatch_exact import NODES_LIMIT, exact_time
from moeopt.dispatch_flow import DispatchResult, given_time
from moeopt.dispatch_rule import rule_time
from moeopt.dispatch_sets import (
    GPUS_LIMIT,
    least_loads,
    matching_time,
    unit_times,
)
from moeopt.problem import FloatArray, IntArray, LayerTime, ProblemData, Scenarios

#: A layer with more experts in its scenarios, all counted, is left to the compiled rule.
COMPILED_FROM = 4096
COMPILED = "rule: whole experts, moves and splits, compiled"

__all__ = [
    "COMPILED",
    "NODES_LIMIT",
    "DispatchResult",
    "exact_time",
    "given_time",
    "host_lists",
    "host_masks",
    "is_polynomial",
    "layer_times",
    "matching_time",
    "rule_time",
    "scenario_times",
    "share_nodes",
    "time_lower_bound",
    "unit_times",
]


def is_polynomial(layer_time: LayerTime) -> bool:
    """Whether layer times are exact whatever their size: only activations or only tokens cost."""
    return not layer_time.counts_tokens or layer_time.expert_us == 0


def share_nodes(scenarios: int) -> int:
    """Nodes of the search for each of many scenarios, so that all together end in seconds."""
    return max(20, min(500, NODES_LIMIT // max(scenarios, 1)))


def host_lists(hosts: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """GPUs that host each expert, from a bool array of shape (E, G)."""
    return [tuple(np.flatnonzero(line).tolist()) for line in hosts]


def host_masks(hosts: npt.NDArray[np.bool_]) -> IntArray:
    """Bit masks of the GPUs (at most 62) that host each expert: [..., G] -> [...]."""
    if hosts.shape[-1] > 62:
        raise ValueError(f"{hosts.shape[-1]} GPUs: masks hold at most 62")
    return hosts.astype(np.int64) @ (np.int64(1) << np.arange(hosts.shape[-1], dtype=np.int64))


def scenario_times(
    data: ProblemData, hosts: npt.NDArray[np.bool_], nodes_limit: int | None = None
) -> tuple[list[FloatArray], str]:
    """Layer times of all scenarios (``placement`` and ``replication``).

    Parameters
    ----------
    data : ProblemData
    hosts : bool array, shape (L, E, G)
    nodes_limit : int, optional
        Nodes of the search for each scenario of a mixed form; by default :func:`share_nodes`.

    Returns
    -------
    times : one float array of shape (S,) a layer
    method : str
        How they were computed, with "; " between several ways; every way that starts with
        "exact" is exact, others are upper bounds.
    """
    results = [
        layer_times(data.layer_time, scenarios, layer, nodes_limit)
        for scenarios, layer in zip(data.scenarios, hosts, strict=True)
    ]
    methods = sorted({name for _, method in results for name in method.split("; ") if name})
    return [times for times, _ in results], "; ".join(methods)


def layer_times(
    layer_time: LayerTime,
    scenarios: Scenarios,
    hosts: npt.NDArray[np.bool_],
    nodes_limit: int | None = None,
) -> tuple[FloatArray, str]:
    """Layer times of one layer's scenarios: :func:`scenario_times` for ``hosts`` of shape (E, G).

    Raises
    ------
    ValueError
        A scenario uses an expert that no GPU hosts.
    """
    if not hosts[scenarios.expert].any(axis=1).all():
        raise ValueError("an expert of a scenario is hosted nowhere")
    gpus = hosts.shape[1]
    row = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
    if (hosts[scenarios.expert].sum(axis=1) == 1).all():
        return _fixed_times(layer_time, scenarios, hosts, row), "exact: one replica each"
    if not layer_time.counts_tokens:
        return layer_time.of(_activations(scenarios, hosts, row), 0), "exact: matching"
    if layer_time.expert_us == 0 and gpus <= GPUS_LIMIT:
        loads = least_loads(
            row,
            host_masks(hosts)[scenarios.expert],
            scenarios.tokens.astype(np.float64),
            len(scenarios),
            gpus,
        )
        return layer_time.of(0, np.ceil(loads)), "exact: max-flow"
    return _one_by_one(layer_time, scenarios, hosts, nodes_limit)


def _fixed_times(
    layer_time: LayerTime, scenarios: Scenarios, hosts: npt.NDArray[np.bool_], row: IntArray
) -> FloatArray:
    gpus = hosts.shape[1]
    at = row * gpus + hosts.argmax(axis=1)[scenarios.expert]
    size = len(scenarios) * gpus
    activated = np.bincount(at, minlength=size)
    tokens = np.bincount(at, scenarios.tokens, size)
    return layer_time.of(activated, tokens).reshape(-1, gpus).max(axis=1)


def _activations(scenarios: Scenarios, hosts: npt.NDArray[np.bool_], row: IntArray) -> IntArray:
    """Least largest number of activations of a GPU, for every scenario."""
    if hosts.shape[1] > 62:
        where = host_lists(hosts)
        members = (scenarios.members(s).tolist() for s in range(len(scenarios)))
        return np.array([matching_time([where[e] for e in m]) for m in members], dtype=np.int64)
    largest = int(scenarios.sizes.max(initial=0))
    padded = np.full((len(scenarios), largest), -1, dtype=np.int64)
    column = np.arange(len(row)) - scenarios.ptr[row]
    padded[row, column] = host_masks(hosts)[scenarios.expert]
    return unit_times(padded)


def _one_by_one(
    layer_time: LayerTime,
    scenarios: Scenarios,
    hosts: npt.NDArray[np.bool_],
    nodes_limit: int | None,
) -> tuple[FloatArray, str]:
    if nodes_limit is None and len(scenarios.expert) > COMPILED_FROM:
        return _compiled(layer_time, scenarios, hosts), COMPILED
    nodes = share_nodes(len(scenarios)) if nodes_limit is None else nodes_limit
    where = host_lists(hosts)
    known: dict[tuple, DispatchResult] = {}
    times = np.zeros(len(scenarios))
    for s in range(len(scenarios)):
        # Experts with the same replicas and tokens are the same to the layer time.
        members = zip(scenarios.members(s).tolist(), scenarios.counts(s).tolist(), strict=True)
        key = tuple(sorted((where[e], n) for e, n in members))
        if key not in known:
            known[key] = exact_time(
                layer_time, [h for h, _ in key], [n for _, n in key], True, nodes
            )
        times[s] = known[key].time
    return times, "; ".join(sorted({result.method for result in known.values()}))


def _compiled(
    layer_time: LayerTime, scenarios: Scenarios, hosts: npt.NDArray[np.bool_]
) -> FloatArray:
    """Times of whole-token dispatches by :mod:`moeopt.dispatch_kernel`: upper bounds."""
    # What is compiled need not be loaded by those who have a few scenarios.
    from moeopt.dispatch_kernel import level_times
    from moeopt.dispatch_time import FORMS, cost_array

    return level_times(
        scenarios.ptr, scenarios.expert, scenarios.tokens, hosts,
        FORMS[layer_time.form], cost_array(layer_time),
    )  # fmt: skip
