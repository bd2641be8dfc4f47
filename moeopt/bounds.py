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
from moeopt.joint.prescribed import is_prescribed, solve_prescribed
from moeopt.problem import FloatArray, ProblemData, Scenarios
from moeopt.solution import Solution
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
    seed: int = 0,
    time_limit_s: float = math.inf,
    enough: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
    on_plan: Callable[[Solution], None] = lambda solution: None,
) -> tuple[Bound, tuple[int, ...] | None]:
    """Bound ``joint`` by layer functions and a knapsack under the best wave lengths.

    Parameters as for :func:`moeopt.joint.lengths.lengths_bound`; prescribed waves are planned, too:
    as for :func:`moeopt.joint.prescribed.solve_prescribed`.

    Returns
    -------
    bound : Bound
    lengths : tuple of int or None
        Decode steps of each wave that are worth a plan; None if none were seen.
    """
    begin = time.perf_counter()
    if is_prescribed(data):
        value = solve_prescribed(
            data,
            seed=seed,
            time_limit_s=time_limit_s,
            enough=enough,
            stop=stop,
            on_bound=on_bound,
            on_plan=on_plan,
        ).value
        proof = "layer times of all prescribed waves at once, a knapsack beside the KV cache"
        return Bound(JOINT_METHOD, value, proof, time.perf_counter() - begin), None
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


def partners(data: ProblemData) -> float:
    """Best partners of every expert (docs/affinity.md)."""
    from moeopt.affinity.bounding import partners_bound

    if data.affinity is None:
        raise ValueError("there is nothing to place")
    return partners_bound(data.affinity)


def first_loads(data: ProblemData) -> float:
    """One load of every expert that is asked for."""
    from moeopt.balance.exact import float_below
    from moeopt.paging.solve import first_loads_bound

    if data.paging is None:
        raise ValueError("there are no requests to serve")
    return float_below(first_loads_bound(data.paging))


def farthest_next_use(data: ProblemData) -> float:
    """Offline optimum of equal loads; of unequal ones the sum over their levels."""
    from moeopt.balance.exact import float_below
    from moeopt.paging.solve import optimum_bound

    if data.paging is None:
        raise ValueError("there are no requests to serve")
    return float_below(optimum_bound(data.paging))


def activation_bound(data: ProblemData) -> float:
    """Knapsack over the scenario bounds of each layer and number of kept experts."""
    from moeopt.activation.choice import choose
    from moeopt.activation.data import activation_of, layer_problem

    least = np.array(
        [
            [scenario_bound(layer_problem(data, l, j)) for j in range(1, data.top_k + 1)]
            for l in range(data.layers)
        ]
    )
    activation = activation_of(data)
    chosen = choose(least, activation.dropped, [activation.budget])[0]
    terms = [data.attention_base_us, *least[np.arange(data.layers), chosen].tolist()]
    return math.fsum(terms) * _SAFE


def topology_layers_bound(data: ProblemData) -> float | None:
    """Every layer alone on its nearest servers; None where copies may be worth something."""
    from moeopt.topology.bounds import layers_bound

    if data.topology is None:
        raise ValueError("no servers are known")
    return layers_bound(data.topology)


def topology_copies_bound(data: ProblemData) -> float | None:
    """So many copies anywhere; None where copies are worth nothing."""
    from moeopt.topology.bounds import copies_bound

    if data.topology is None:
        raise ValueError("no servers are known")
    return copies_bound(data.topology)


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
    "topology": (
        (
            "layers alone",
            "each layer's heaviest experts on its nearest servers, whatever other layers need",
            topology_layers_bound,
        ),
        (
            "copies",
            "least hops of every number of copies, shared out over all experts, servers unlimited",
            topology_copies_bound,
        ),
    ),
    "affinity": (
        (
            "partners",
            "no expert keeps more tokens than its best partners have, no GPU holds more experts",
            partners,
        ),
    ),
    "paging": (
        (
            "farthest next use",
            "fewest misses of any evictions, cost level by cost level (docs/paging.md)",
            farthest_next_use,
        ),
        ("first loads", "every expert that is asked for is loaded once", first_loads),
    ),
    "activation": (
        (
            "scenario and knapsack",
            "every scenario at its least time, the best choice of kept experts within the budget",
            activation_bound,
        ),
    ),
}
