"""Lower bounds that hold without a solver, each with its proof in words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt import dispatch
from moeopt.joint.lengths import lengths_bound
from moeopt.problem import FloatArray, ProblemData, Scenarios
from moeopt.step_bound import work_bound

# Sums of at most a few million rounded terms: relative error far below 2**-25 (they are all of one
# sign). Bounds are lowered by that much, so that rounding cannot make them too large.
_SAFE = 1.0 - 2.0**-25


#: Name of the proof of :func:`joint_bound`.
JOINT_METHOD = "layer functions + knapsack"


@dataclass(frozen=True)
class Bound:
    """A proved lower bound.

    Attributes
    ----------
    method : str
        Its name on the command line, in records and tables.
    value : float
        In the unit of the problem's objective.
    proof : str
        Why it holds, in one line.
    """

    method: str
    value: float
    proof: str
    seconds: float


Method = tuple[str, str, Callable[[ProblemData], float | None]]


def combinatorial_bounds(data: ProblemData) -> list[Bound]:
    """All combinatorial bounds of the problem, strongest first."""
    bounds = []
    for method, proof, value_of in _METHODS[data.problem]:
        begin = time.perf_counter()
        value = value_of(data)
        if value is not None:
            bounds.append(Bound(method, value, proof, time.perf_counter() - begin))
    return sorted(bounds, key=lambda bound: -bound.value)


def joint_bound(
    data: ProblemData,
    *,
    time_limit_s: float = math.inf,
    enough: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
) -> tuple[Bound, tuple[int, ...] | None]:
    """Bound ``joint`` by layer functions and a knapsack under the best wave lengths.

    Parameters as for :func:`moeopt.joint.lengths.lengths_bound`.

    Returns
    -------
    bound : Bound
    lengths : tuple of int or None
        Decode steps of each wave that are worth a plan; None if none were seen.
    """
    begin = time.perf_counter()
    found = lengths_bound(
        data, time_limit_s=time_limit_s, enough=enough, stop=stop, on_bound=on_bound
    )
    proof = (
        "layer times of every number of replicas, a knapsack over the layers beside the KV cache, "
        "the best wave lengths; a linear programme over the requests of each wave"
    )
    seconds = time.perf_counter() - begin
    return Bound(JOINT_METHOD, found.value, proof, seconds), found.lengths


def scenario_bound(data: ProblemData) -> float:
    """Every scenario at the least time that any placement allows it.

    For ``unit``: ``ceil(|A|/G)``; for the other forms :func:`moeopt.dispatch.time_lower_bound`.
    """
    total: list[float] = []
    known: dict[tuple[int, ...], float] = {}
    for layer in data.scenarios:
        if data.layer_time.form == "unit":
            times = np.ceil(layer.sizes / data.gpus)
        else:
            times = np.array([_least_time(data, layer, s, known) for s in range(len(layer))])
        total += (layer.weight * times).tolist()
    return math.fsum(total) * _SAFE


def _least_time(
    data: ProblemData, layer: Scenarios, s: int, known: dict[tuple[int, ...], float]
) -> float:
    """Least time of a scenario; it depends on its token counts only."""
    counts = tuple(sorted(layer.counts(s).tolist()))
    if counts not in known:
        known[counts] = dispatch.time_lower_bound(data.layer_time, counts, data.gpus, whole=True)
    return known[counts]


def coactivation_bound(data: ProblemData) -> float | None:
    """``placement`` in expert-time units, from pairs of experts used together.

    Let z_ij = 1 where experts i, j share a GPU and Z_S the number of such pairs inside scenario S.
    On the GPU graph of S the largest group has size at least 1 + (mean number of mates of an expert
    of S) = 1 + 2 Z_S/|S|, so ``T_S >= 1 + 2 Z_S/|S|`` and, with
    ``P_ij = Σ_{S ∋ i,j} p_S·2/|S|``, the expected time is at least ``1 + Σ_{i<j} P_ij z_ij``.
    E experts on G GPUs make at least ``Σ_g C(c_g, 2)`` pairs with the counts c_g as equal as
    possible: the sum of so many smallest P_ij is a lower bound. Where every GPU must be full
    (E = G·slots) every expert has exactly ``slots − 1`` mates: half the sum over experts of their
    ``slots − 1`` smallest P_ij is one, too.
    """
    if data.layer_time.form != "unit":
        return None
    experts, gpus = data.experts, data.gpus
    small, larger = divmod(experts, gpus)
    pairs = larger * math.comb(small + 1, 2) + (gpus - larger) * math.comb(small, 2)
    upper = np.triu_indices(experts, 1)
    total = 0.0
    for layer in data.scenarios:
        together = _together(data, layer.ptr, layer.expert, layer.weight)
        cheapest = float(np.sort(together[upper])[:pairs].sum())
        if data.slots is not None and data.slots * gpus == experts:
            off_diagonal = together + np.diag(np.full(experts, np.inf))
            mates = np.sort(off_diagonal, axis=1)[:, : data.slots - 1]
            cheapest = max(cheapest, float(mates.sum()) / 2.0)
        total += 1.0 + cheapest
    return total * _SAFE


def _together(
    data: ProblemData, ptr: np.ndarray, expert: np.ndarray, weight: FloatArray
) -> FloatArray:
    """P_ij of :func:`coactivation_bound`, shape (E, E), zero diagonal."""
    from scipy import sparse

    sizes = np.diff(ptr)
    incidence = sparse.csr_array(
        (np.ones(len(expert)), expert, ptr), shape=(len(weight), data.experts)
    )
    scaled = sparse.diags_array(2.0 * weight / sizes) @ incidence
    together = np.asarray((incidence.T @ scaled).todense(), dtype=np.float64)
    np.fill_diagonal(together, 0.0)
    return together


_SCENARIO: Method = (
    "scenario",
    "every scenario at the least time that any placement on these GPUs allows it",
    scenario_bound,
)


def mean_load_bound(data: ProblemData) -> float:
    """Tokens of all experts over the GPUs, summed over layers, mean over windows."""
    from moeopt.balance.exact import float_below

    if data.balance is None:
        raise ValueError("there are no loads to balance")
    loads = data.balance.loads
    total = sum((Fraction(load) for load in loads.ravel().tolist()), Fraction(0))
    return float_below(total / (data.gpus * len(loads)))


def balance_bound(data: ProblemData) -> float:
    """Best of the bounds of each layer that need no plan (docs/balance.md)."""
    from moeopt.balance.bounding import bound_layer
    from moeopt.balance.exact import sum_below

    if data.balance is None:
        raise ValueError("there are no loads to balance")
    return sum_below(bound_layer(data.balance, l).value for l in range(data.layers))


_METHODS: dict[str, tuple[Method, ...]] = {
    "placement": (
        _SCENARIO,
        (
            "co-activation",
            "T_S >= 1 + 2·(pairs of S on one GPU)/|S|, and so many cheapest pairs must share one",
            coactivation_bound,
        ),
    ),
    "replication": (_SCENARIO,),
    "joint": (
        (
            "work",
            "mean work of the GPUs in each step of the best wave lengths that KV memory allows",
            work_bound,
        ),
    ),
    "balance": (
        (
            "largest piece",
            "each layer by its mean load, its largest piece or the components of heavy experts",
            balance_bound,
        ),
        ("mean load", "tokens of all experts over the GPUs", mean_load_bound),
    ),
}
