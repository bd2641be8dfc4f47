"""``activation`` of an instance: value functions of the layers, and choices under a budget.

Slots alone limit, so layers share nothing but the budget. With ``v[l, j]`` the least expected time
of layer l over its placements when j experts of every token are kept,

    least step time = attention + min { Σ_l v[l, j_l] : Σ_l dropped[l, j_l] <= budget }.

Replacing v by the times of plans gives a plan, by lower bounds a lower bound (docs/activation.md).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeopt.activation.choice import choose
from moeopt.activation.data import activation_of, layer_problem
from moeopt.bounds import combinatorial_bounds
from moeopt.dispatch import layer_times
from moeopt.heuristics import placement
from moeopt.heuristics.capacity import slots, spread
from moeopt.heuristics.counted import anneal_layers
from moeopt.heuristics.greedy import contiguous
from moeopt.methods import methods_for
from moeopt.problem import FloatArray, LayerTime, ProblemData, Scenarios
from moeopt.proving import layer_values, prove

BoolArray = npt.NDArray[np.bool_]
Stop = Callable[[], bool]

#: Sums of so few terms lose less than this share; bounds are lowered by it.
_SAFE = 1.0 - 2.0**-45
#: ... and this much where weights that sum up to 1 but for rounding are summed.
_SAFE_WEIGHTS = 1.0 - 2.0**-40
#: Share of the time limit for plans; proofs get what is left.
_PLAN_SHARE = 0.4
#: Random starts of a layer's search, beside those that mean something.
_SHUFFLED = 4
#: A layer's bound within this share of its plan needs no more work.
_CLOSED = 1e-9


@dataclass
class LayerValues:
    """Times of every layer under every number of kept experts.

    Attributes
    ----------
    upper : float array, shape (L, k)
        Expected time of the plan ``hosts[l, j - 1]``.
    lower : float array, shape (L, k)
        Proved: no placement is faster.
    hosts : bool array, shape (L, k, E, G)
    methods : list of list of str, [L][k]
        The proof of each lower bound.
    """

    upper: FloatArray
    lower: FloatArray
    hosts: BoolArray
    methods: list[list[str]]


@dataclass(frozen=True)
class Choice:
    """A choice within a budget: a plan, and what no plan within that budget is below.

    Attributes
    ----------
    budget : int
        Units of :data:`moeopt.activation.data.MASS_UNITS`.
    kept : list of int, [L]
    hosts : bool array, shape (L, E, G)
    lower : float
        With the attention constant.
    source : str
        Names of the proofs behind the bound.
    """

    budget: int
    kept: list[int]
    hosts: BoolArray
    lower: float
    source: str


def value_layers(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = math.inf,
    stop: Stop = lambda: False,
    proofs: bool = True,
) -> LayerValues:
    """Plan and bound every layer under every number of kept experts.

    Parameters
    ----------
    data : ProblemData
        With hosts to be kept, their times are both bounds, and no search is made.
    time_limit_s : float
        Of which plans get a share first; every layer has a plan and a bound in any case.
    proofs : bool
        Whether to try the methods of :mod:`moeopt.methods` after the bounds that take no time.
    """
    given = activation_of(data).hosts
    if given is not None:
        return fixed_values(data, given)
    begin = time.monotonic()
    provable = [at for at in np.ndindex(data.layers, data.top_k) if proofs and _provable(data, *at)]
    share = _PLAN_SHARE if provable else 1.0
    values = _plans(data, seed, begin + share * time_limit_s, stop)
    for l in range(data.layers):
        for j in range(1, data.top_k + 1):
            best = combinatorial_bounds(layer_problem(data, l, j))[0]
            values.lower[l, j - 1] = best.value
            values.methods[l][j - 1] = best.method
    if provable:
        _prove(data, values, provable, begin + time_limit_s, stop)
    return values


def fixed_values(data: ProblemData, hosts: BoolArray) -> LayerValues:
    """Times of given hosts (L, E, G), one GPU for each expert: plans and bounds at once."""
    upper = np.array(
        [
            [_time(data, scenarios, hosts[l]) for scenarios in layer]
            for l, layer in enumerate(activation_of(data).scenarios)
        ]
    )
    repeated = np.repeat(hosts[:, None], data.top_k, axis=1)
    methods = [["times of the given plan"] * data.top_k for _ in range(data.layers)]
    return LayerValues(upper, upper * _SAFE, repeated, methods)


def choices(data: ProblemData, values: LayerValues, budgets: Sequence[int]) -> list[Choice]:
    """Return the best choice of the known plans, and a lower bound, for each budget."""
    dropped = activation_of(data).dropped
    planned = choose(values.upper, dropped, budgets)
    bounded = choose(values.lower, dropped, budgets)
    layers = np.arange(data.layers)
    found = []
    for budget, at, below in zip(budgets, planned, bounded, strict=True):
        terms = [data.attention_base_us, *values.lower[layers, below].tolist()]
        names = Counter(values.methods[l][j] for l, j in enumerate(below.tolist()))
        source = ", ".join(f"{name} ({n} layers)" for name, n in names.most_common())
        found.append(
            Choice(
                budget,
                [j + 1 for j in at.tolist()],
                values.hosts[layers, at],
                math.fsum(terms) * _SAFE,
                f"knapsack over layers: {source}",
            )
        )
    return found


def uniform(data: ProblemData, values: LayerValues, kept: int) -> Choice:
    """Return the plan in which every layer keeps so many experts, and the bound of its budget."""
    dropped = int(activation_of(data).dropped[:, kept - 1].sum())
    best = choices(data, values, [dropped])[0]
    return replace(best, kept=[kept] * data.layers, hosts=values.hosts[:, kept - 1])


# --- plans ----------------------------------------------------------------------------------------


def _time(data: ProblemData, scenarios: Scenarios, hosts: BoolArray) -> float:
    times, _ = layer_times(data.layer_time, scenarios, hosts)
    return math.fsum((scenarios.weight * times).tolist())


def _best(data: ProblemData, scenarios: Scenarios, plans: list[BoolArray]) -> BoolArray:
    return min(plans, key=lambda plan: _time(data, scenarios, plan))


def _plans(data: ProblemData, seed: int, deadline: float, stop: Stop) -> LayerValues:
    """Search a plan of every layer and number of kept experts; bounds are still 0."""
    shape = (data.layers, data.top_k)
    hosts = np.zeros((*shape, data.experts, data.gpus), dtype=bool)
    left = data.layers * data.top_k
    for l in range(data.layers):
        known: list[BoolArray] = []
        for j in range(data.top_k, 0, -1):
            share = max(0.0, deadline - time.monotonic()) / left
            layer = layer_problem(data, l, j)
            known.append(_search(layer, known[-1:], seed, share, stop))
            left -= 1
        # A plan made for one number of kept experts may be the best for another.
        for j, scenarios in enumerate(activation_of(data).scenarios[l]):
            hosts[l, j] = _best(data, scenarios, known)
    rows = activation_of(data).scenarios
    upper = [
        [_time(data, rows[l][j], hosts[l, j]) for j in range(shape[1])] for l in range(shape[0])
    ]
    methods = [[""] * data.top_k for _ in range(data.layers)]
    return LayerValues(np.array(upper), np.zeros(shape), hosts, methods)


def _search(
    layer: ProblemData, known: list[BoolArray], seed: int, time_limit_s: float, stop: Stop
) -> BoolArray:
    """Best plan (E, G) of one layer that annealing from several ends at, and a descent from it."""
    deadline = time.monotonic() + time_limit_s
    scenarios = layer.scenarios[0]
    in_units = replace(layer, layer_time=LayerTime())
    starts = [plan[0] for plan in (contiguous(layer), spread(layer)) if plan is not None]
    if layer.layer_time.form == "unit" or (scenarios.tokens == 1).all():
        # Times rise with the activations of the fullest GPU alone: what the annealing is for.
        limit = 0.8 * time_limit_s if math.isfinite(time_limit_s) else 30.0
        annealed = placement.place_hosts(in_units, seed=seed, time_limit_s=limit, stop=stop)
        starts += [] if annealed is None else [annealed[0]]
    starts += known
    if layer.layer_time.form == "unit":
        return _best(layer, scenarios, starts)
    rng = np.random.default_rng(seed)
    starts += [rng.permutation(starts[0]) for _ in range(_SHUFFLED)]
    ends = [
        anneal_layers(layer, start[None], seed=seed + i, deadline=deadline, stop=stop)[0]
        for i, start in enumerate(starts)
    ]
    best = _best(layer, scenarios, ends)
    state = placement.LayerState(layer, scenarios, best.argmax(axis=1))
    free = np.full(layer.gpus, slots(layer)) - best.sum(axis=0)
    state, _ = placement.descend(state, free, deadline, stop)
    return np.arange(layer.gpus) == state.gpu_of[:, None]


# --- bounds ---------------------------------------------------------------------------------------


def activations_minorant(layer_time: LayerTime) -> tuple[float, float]:
    """Return (u, s) such that ``f(A, N) >= u + s (A - 1)`` for whole ``N >= A >= 1``.

    Every activated expert computes a token at least, so ``f(A, N) >= f(A, A)``; that is convex in A
    for all forms, so beyond A = 1 it is not below the line through its first two values.
    """
    one, two = (float(layer_time.of(a, a)) for a in (1, 2))
    return one, two - one


def _provable(data: ProblemData, l: int, j: int) -> bool:
    """Whether the layer with j + 1 kept experts is of the kind that the methods are made for.

    That is one token: the scenarios of a batch have many more experts.
    """
    return int(activation_of(data).scenarios[l][j].sizes.max()) <= data.top_k


def _prove(
    data: ProblemData,
    values: LayerValues,
    provable: list[tuple[int, ...]],
    deadline: float,
    stop: Stop,
) -> None:
    """Raise bounds by the largest numbers of activations alone, where that can help.

    The widest gaps come first. A proof in expert-time units holds whatever the tokens: the minorant
    turns it into time.
    """
    base, slope = activations_minorant(data.layer_time)
    in_units = replace(data, layer_time=LayerTime())
    waiting: list[tuple[float, int, int]] = []
    for l, j in provable:
        layer = layer_problem(in_units, l, j + 1)
        most = base + slope * (float(layer_values(layer, values.hosts[l, j][None])[0]) - 1.0)
        gain = min(most, float(values.upper[l, j])) - float(values.lower[l, j])
        if gain > _CLOSED * values.upper[l, j]:
            waiting.append((gain, l, j))
    waiting.sort(reverse=True)
    for position, (_, l, j) in enumerate(waiting):
        left = deadline - time.monotonic()
        if left <= 0 or stop():
            break
        layer = layer_problem(in_units, l, j + 1)
        proof = prove(
            layer,
            methods_for(layer),
            hosts=values.hosts[l, j][None],
            time_limit_s=left / (len(waiting) - position),
            stop=stop,
        )
        bound = (base + slope * (proof.value - 1.0)) * _SAFE_WEIGHTS
        if bound > values.lower[l, j]:
            values.lower[l, j], values.methods[l][j] = bound, proof.methods[0]
        if proof.hosts is not None:
            scenarios = layer.scenarios[0]
            better = _time(data, scenarios, proof.hosts[0])
            if better < values.upper[l, j]:
                values.upper[l, j], values.hosts[l, j] = better, proof.hosts[0]


def solve_choice(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = math.inf,
    stop: Stop = lambda: False,
) -> Choice:
    """Return the best plan found within the budget of the data, and a bound."""
    values = value_layers(data, seed=seed, time_limit_s=time_limit_s, stop=stop)
    return choices(data, values, [activation_of(data).budget])[0]
