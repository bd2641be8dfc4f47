"""Lower bounds and optima of ``replication`` (form ``unit``) with few GPUs and many copies.

For scenarios of at most four experts and GPUs limited by slots. A counting bound first, then a tree
over what each of four GPUs hosts (:mod:`.pair_search_gpus`) or over the mask of each expert
(:mod:`.pair_search_masks`), whichever gets further in a sample. A tree searched to its end with a
target proves that no plan is below the target. Targets are tried from the highest; one that would
not end in time is given up after a sample of its tree. Derivation and proof:
docs/bounds/pair_search.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.problem import LayerTime, Scenarios
from moeopt.proofs import pair_search_gpus
from moeopt.proofs.pair_search_count import counting_bound
from moeopt.proofs.pair_search_gpus import GpuTree
from moeopt.proofs.pair_search_masks import MaskTree
from moeopt.proofs.pair_search_queue import Limits, Outcome
from moeopt.proofs.pair_search_root import SAFE
from moeopt.proofs.pair_search_terms import MEMBERS

RUNGS = (0.93, 0.95, 0.97, 0.98, 0.99, 1.0)
TREES = ("gpus", "masks")
GPUS_LIMIT = 5
EXPERTS_LIMIT = 24
# Relative gap that is called closed.
_CLOSED = 1.0 - 1e-10
_HALVINGS = 4
# Share of all time for which each of several trees is tried.
_SAMPLE = 0.02


@dataclass(frozen=True)
class SearchResult:
    """Outcome of :func:`pair_search`.

    Attributes
    ----------
    lower : float
        Proved: no plan is below it.
    complete : bool
        The tree at the best known value was searched to its end. ``lower`` may still be a little
        lower where weights are not in whole proportions (docs/bounds/pair_search.md).
    hosts : bool array, shape (E, G), or None
        A plan better than ``upper``, if one was found; its value is ``value``.
    method : str
        What proved ``lower``: "scenario", "counting", "gpus" or "masks".
    rung : float
        Last completed target over the best known value; 0 if none was completed.
    """

    lower: float
    complete: bool
    hosts: npt.NDArray[np.bool_] | None
    value: float
    method: str
    nodes: int
    seconds: float
    rung: float


def supports(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> str | None:
    """Return why the search cannot take this layer; None if it can."""
    if int(scenarios.sizes.max(initial=0)) > MEMBERS:
        return f"a scenario has more than {MEMBERS} experts"
    if gpus > GPUS_LIMIT:
        return f"{gpus} GPUs: at most {GPUS_LIMIT}"
    if experts > EXPERTS_LIMIT:
        return f"{experts} experts: at most {EXPERTS_LIMIT}"
    if gpus * slots < experts:
        return "the slots do not hold one copy of every expert"
    return None


def pair_search(
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
    *,
    upper: float,
    incumbent: npt.NDArray[np.bool_] | None = None,
    time_limit_s: float = 300.0,
    threads: int = 2,
    rungs: tuple[float, ...] = RUNGS,
    count: bool = True,
    trees: tuple[str, ...] = TREES,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda bound: None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Lower bound on the expected layer time of one layer with replicas, form ``unit``.

    Parameters
    ----------
    scenarios : Scenarios
        At most four experts each.
    upper : float
        Value of a known plan; the search looks for better ones only.
    incumbent : bool array, shape (E, G), optional
        That plan; its masks shape the terms (any plan gives a valid bound).
    time_limit_s : float
        By ``clock``: wall time unless another is given.
    rungs : tuple of float
        Targets as shares of the best known value.
    count : bool
        Begin with the counting bound.
    trees : tuple of str
        Trees that may be searched; "gpus" is left out of layers that it cannot take.
    on_bound : callable
        Called with each new bound.

    Raises
    ------
    ValueError
        :func:`supports` gives a reason.
    ArithmeticError
        A check in whole numbers failed (no bound would be safe).
    """
    if reason := supports(scenarios, experts, gpus, slots):
        raise ValueError(reason)
    begin = clock()
    limits = Limits(clock, begin + time_limit_s, time_limit_s, stop)
    layer = _Layer(scenarios, experts, gpus, min(slots, experts), upper, incumbent, threads)
    if pair_search_gpus.supports(scenarios, experts, gpus, slots):
        trees = tuple(name for name in trees if name != "gpus")
    ladder = _Ladder(layer, trees, limits, on_bound)
    if count and ladder.open():
        ladder.count()
    if ladder.open():
        ladder.climb(rungs)
    return SearchResult(
        lower=min(ladder.lower, ladder.best),
        complete=ladder.complete or not ladder.open(),
        hosts=ladder.hosts,
        value=ladder.best,
        method=ladder.method,
        nodes=ladder.nodes,
        seconds=clock() - begin,
        rung=ladder.rung,
    )


@dataclass(frozen=True)
class _Layer:
    """A layer and its trees, each built when it is first searched."""

    scenarios: Scenarios
    experts: int
    gpus: int
    slots: int
    upper: float
    incumbent: npt.NDArray[np.bool_] | None
    threads: int

    @cached_property
    def by_gpus(self) -> GpuTree:
        return GpuTree(self.scenarios, self.experts, self.slots, self.threads)

    @cached_property
    def by_masks(self) -> MaskTree:
        return MaskTree(
            self.scenarios, self.experts, self.gpus, self.slots, self.upper, self.incumbent,
            self.threads,
        )  # fmt: skip

    def search(self, tree: str, goal: float, limits: Limits) -> Outcome:
        return (self.by_gpus if tree == "gpus" else self.by_masks).search(goal, limits)


class _Ladder:
    """State of the search over targets."""

    def __init__(
        self,
        layer: _Layer,
        trees: tuple[str, ...],
        limits: Limits,
        on_bound: Callable[[float], None],
    ) -> None:
        self.layer, self.trees, self.limits, self.on_bound = layer, trees, limits, on_bound
        self.best = layer.upper
        self.hosts: npt.NDArray[np.bool_] | None = None
        self.nodes, self.rung, self.complete, self.method = 0, 0.0, False, "scenario"
        least = -(-layer.scenarios.sizes // layer.gpus)
        self.lower = float((layer.scenarios.weight * least).sum()) * SAFE
        on_bound(self.lower)

    def open(self) -> bool:
        return self.lower < self.best * _CLOSED

    def count(self) -> None:
        """Counting bound, where most scenarios have equal sizes."""
        layer, sizes = self.layer, self.layer.scenarios.sizes
        top = int(sizes.max())
        rows = np.flatnonzero(sizes == top)
        sets = np.sort([layer.scenarios.members(row) for row in rows.tolist()], axis=1)
        _, which = np.unique(sets, axis=0, return_inverse=True)
        weight = np.zeros(int(which.max()) + 1)
        np.add.at(weight, which.ravel(), layer.scenarios.weight[rows])
        bound = counting_bound(weight, layer.experts, layer.gpus, layer.slots, top, self.best)
        # The other scenarios take 1 at least, as those of the counting argument do.
        if bound is not None:
            self._raise(bound - 1.0 + 1.0 * SAFE, "counting")

    def _raise(self, bound: float, method: str) -> None:
        if bound > self.lower:
            self.lower, self.method = bound, method
            self.on_bound(bound)

    def climb(self, rungs: tuple[float, ...]) -> None:
        """Prove the highest target that time allows, from the top; then try between rungs."""
        failed = 0.0
        for share in sorted(set(rungs), reverse=True):
            if self.limits.over() or share * self.best * _CLOSED <= self.lower:
                break
            if self._rung(share):
                break
            failed = share
        for _ in range(_HALVINGS if failed else 0):
            proved = self.lower / self.best
            share = (failed + proved) / 2.0
            if self.limits.over() or failed - proved < 0.004:
                break
            if not self._rung(share):
                failed = share

    def _rung(self, share: float) -> bool:
        """Search with one target; True if that proved it (or a better plan's value)."""
        shares: dict[str, float] = {}
        if len(self.trees) > 1:  # sample them; the one that gets further goes on alone
            for tree in self.trees:
                soon = self.limits.clock() + _SAMPLE * self.limits.budget
                limits = replace(self.limits, deadline=min(soon, self.limits.deadline))
                outcome = self._search(tree, share, limits)
                if outcome.finished:
                    return True
                shares[tree] = outcome.share
            self.trees = (max(shares, key=lambda tree: shares[tree]),)
        return not self.limits.over() and self._search(self.trees[0], share, self.limits).finished

    def _search(self, tree: str, share: float, limits: Limits) -> Outcome:
        outcome = self.layer.search(tree, share * self.best, limits)
        self.nodes += outcome.nodes
        if outcome.hosts is not None:
            scenarios = self.layer.scenarios
            times, _ = dispatch.layer_times(LayerTime(), scenarios, outcome.hosts)
            cost = math.fsum((scenarios.weight * times).tolist())
            if cost < self.best:
                self.best, self.hosts = cost, outcome.hosts
        if outcome.finished:
            self.rung = share
            self.complete = share >= 1.0 or outcome.hosts is not None
            # The plan that attains it may be worth a rounding less in floating point.
            self._raise(min(outcome.bound * SAFE, self.best), tree)
        return outcome
