"""The column bound: which experts share a GPU, and what replicas still cost.

For a layer whose GPUs are equal and limited by slots, in expert-time units. A column is a set of
experts without replicas on one GPU; replicated experts are dropped (at most G·slots − E of them),
at first for nothing, then each for an edge between the columns of its hosts.
docs/bounds/columns.md has the derivation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.errors import InputError
from moeopt.problem import FloatArray, Scenarios
from moeopt.proofs.columns_ascent import UNIT, Ascent, Multipliers
from moeopt.proofs.columns_edges import charges, cheapest, edge_units, ends
from moeopt.proofs.columns_edges_ascent import EdgeAscent, worth_it
from moeopt.proofs.columns_lattice import Lattice, count_sets
from moeopt.proofs.columns_patterns import MOST_MEMBERS, PRICE_BITS, groups_of
from moeopt.proofs.columns_price import (
    BITS,
    Pricing,
    bound_units,
    least_times,
    rounded_down,
    whole,
)
from moeopt.proofs.columns_tree import Tree

#: Columns take about 50 bytes each, and every step looks at all of them.
MOST_COLUMNS = 5_000_000
#: Steps of the multiplier loop at the root, and how often it is repeated while it gains.
_STEPS, _REPEATS, _GAIN = 100, 3, 1e-3
#: The same with edges, and the steps without edges before.
_EDGE_STEPS, _EDGE_REPEATS, _STEPS_BEFORE = 20, 3, 40


@dataclass(frozen=True)
class ColumnBound:
    """A proved lower bound on the expected time of one layer.

    Attributes
    ----------
    value : float
        In expert-time units.
    root_value : float
        The part of it that the multipliers alone prove (:func:`verify`); the rest is branching.
        With replicas all of it.
    multipliers : Multipliers
        Certificate of ``root_value``.
    closed : bool
        The single-copy relaxation is solved (up to 1e-7 where it took branching): without replicas
        the bound is the optimum of the layer; with replicas it may be above the relaxation's.
    sets : list of list of int
        Experts without replicas on each GPU in the best plan of the relaxation that was met, with
        time ``sets_value``; without replicas it is a plan of the layer. May be empty.
    """

    value: float
    root_value: float
    multipliers: Multipliers
    closed: bool
    sets: list[list[int]]
    sets_value: float
    iterations: int
    nodes: int
    columns: int
    seconds: float


def supports(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> str | None:
    """Say why a layer is too large, or None."""
    if int(scenarios.sizes.max(initial=0)) > MOST_MEMBERS:
        return f"a scenario has {scenarios.sizes.max()} experts; at most {MOST_MEMBERS}"
    columns = count_sets(experts, slots)
    if columns > MOST_COLUMNS:
        return f"{columns:,} sets of at most {slots} of {experts} experts; at most {MOST_COLUMNS:,}"
    if gpus * slots < experts:
        return f"{gpus} GPUs with {slots} slots cannot host {experts} experts"
    return None


def column_bound(
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
    *,
    replicas: bool,
    upper: float | None = None,
    time_limit_s: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
) -> ColumnBound:
    """Bound the expected time of one layer from below.

    Parameters
    ----------
    replicas : bool
        Whether an expert may have several copies.
    upper : float, optional
        Time of the best plan known: stops the search early, and nothing else.
    stop : callable
        Asked between steps; when it says True the best bound so far is returned.
    on_bound : callable
        Hears every improvement.

    Raises
    ------
    InputError
        :func:`supports` gives a reason.
    """
    if (reason := supports(scenarios, experts, gpus, slots)) is not None:
        raise InputError(f"column bound: {reason}")
    begin = time.monotonic()
    lattice = Lattice(experts, slots)
    pricing = Pricing(lattice, groups_of(scenarios, gpus))
    surplus = gpus * slots - experts if replicas else 0
    ascent = Ascent(pricing, gpus, surplus)
    least = least_times(scenarios, gpus)

    def value_of(units: int) -> float:
        return rounded_down(least + Fraction(units, 2**BITS))

    def ended() -> bool:
        return stop() or time.monotonic() - begin > time_limit_s

    def heard(units: int) -> None:
        on_bound(value_of(units))

    known = math.inf if upper is None else upper - float(least)
    tree = Tree(ascent, known)
    root = ascent.root()
    on_bound(value_of(0))
    charged = worth_it(ascent)
    steps, repeats = (_STEPS_BEFORE, 1) if charged else (_STEPS, _REPEATS)
    for _ in range(repeats):
        before = root.units
        ascent.raise_bound(root, steps, target=tree.target, stop=ended, on_units=heard)
        gained = (root.units - before) / max(root.units, 1)
        if root.closed or ended() or gained < _GAIN or tree.is_done(root):
            break
    closed = root.closed
    if charged:
        # A whole solution of the single-copy relaxation is no plan: only ``upper`` ends this.
        enough = None if math.isinf(known) else math.floor(known / UNIT)
        edges = EdgeAscent(ascent, slots)
        for o in range(_EDGE_REPEATS):
            before = root.units
            if ended() or (enough is not None and before >= enough):
                break
            edges.raise_bound(
                root, _EDGE_STEPS, step=0.5**o, target=enough, stop=ended, on_units=heard
            )
            if root.units - before < _GAIN * root.units:
                break
    units = root.units
    if surplus == 0 and not ended():
        units = tree.search(root, ended, heard)
    closed = closed or (surplus == 0 and tree.finished)
    return ColumnBound(
        value=value_of(units),
        root_value=value_of(root.units),
        multipliers=root.multipliers,
        closed=closed,
        sets=ascent.sets,
        sets_value=float(least) + ascent.paid,
        iterations=ascent.iterations,
        nodes=tree.nodes,
        columns=len(lattice) - 1,
        seconds=time.monotonic() - begin,
    )


def verify(
    multipliers: Multipliers,
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
    *,
    replicas: bool,
) -> float:
    """Lower bound that any multipliers prove, computed anew in whole numbers.

    Multipliers that are no numbers, negative or too large are cut to what the proof allows.

    Raises
    ------
    InputError
        The layer is too large, or the multipliers have other shapes.
    """
    if (reason := supports(scenarios, experts, gpus, slots)) is not None:
        raise InputError(f"column bound: {reason}")
    groups = groups_of(scenarios, gpus)
    shapes = [group.price.shape for group in groups]
    if multipliers.dual.shape != (experts,) or [p.shape for p in multipliers.price] != shapes:
        raise InputError("column bound: multipliers of another layer")
    halves = [(len(group.members), group.k, group.k) for group in groups]
    if multipliers.share and [p.shape for p in multipliers.share] != halves:
        raise InputError("column bound: shares of another layer")
    for group, price in zip(groups, multipliers.price, strict=True):
        group.price[...] = _allowed(price)
    pricing = Pricing(Lattice(experts, slots), groups)
    dual = whole(np.nan_to_num(multipliers.dual))
    reduced = pricing.cost() - pricing.lattice.sums(dual)
    surplus = gpus * slots - experts if replicas else 0
    if surplus > 0 and multipliers.share:
        charge = charges(experts, groups, list(multipliers.share))
        edge, _ = cheapest(charge, ends(pricing.lattice, slots, reduced), dual)
        units = edge_units(dual, reduced, edge, pricing.excess(), gpus, surplus)
    else:
        units = bound_units(dual, int(reduced.min()), pricing.excess(), gpus, surplus)
    return rounded_down(least_times(scenarios, gpus) + Fraction(max(units, 0), 2**BITS))


def _allowed(price: FloatArray) -> FloatArray:
    """Prices within 0 … 8, on their grid, none for less than two experts."""
    grid = 2.0**PRICE_BITS
    price = np.floor(np.clip(np.nan_to_num(price), 0.0, 8.0) * grid) / grid
    few = [a for a in range(price.shape[1]) if a.bit_count() < 2]
    price[:, few] = 0.0
    return np.asarray(price)
