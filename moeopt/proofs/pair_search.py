"""Branch and bound for ``replication`` (form ``unit``) with few GPUs and many copies.

For scenarios of at most four experts and GPUs limited by slots. Every node bounds the expected time
by unary and pair terms of the open experts (:mod:`.pair_search_terms`), improved by message passing
and by prices of GPUs (:mod:`.pair_search_kernel`). A tree searched to its end with a target proves
that no plan is below the target. Targets are tried from the highest; one that would not end in time
is given up after a sample of its tree. Derivation and proof: docs/bounds/pair_search.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.problem import Scenarios
from moeopt.proofs.pair_search_count import counting_bound
from moeopt.proofs.pair_search_kernel import LIMIT
from moeopt.proofs.pair_search_root import (
    SAFE,
    leaf_times,
    root_tables,
    typical_pairs,
    whole_weights,
)
from moeopt.proofs.pair_search_terms import GRID, MEMBERS, pair_terms
from moeopt.proofs.pair_search_tree import ERROR, NODES, OVERFLOW, STOP, search

Array = npt.NDArray[np.int64]

RUNGS = (0.93, 0.95, 0.97, 0.98, 0.99, 1.0)
GPUS_LIMIT = 5
EXPERTS_LIMIT = 24
# Relative gap that is called closed.
_CLOSED = 1.0 - 1e-10
# Targets stay below 2**27.5, under the cap of table entries.
_TARGET_LIMIT = 2**27.5
# Experts are equally popular where the most popular is at most so many times the least.
_EVEN = 1.5
# After this share of all time a rung is given up once it seems to need more than what is left.
_PROBE = 0.04
_HALVINGS = 4


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
        What proved ``lower``: "scenario", "counting" or "pair search".
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
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda bound: None,
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
        Wall time.
    rungs : tuple of float
        Targets as shares of the best known value.
    count : bool
        Begin with the counting bound.
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
    begin = time.monotonic()
    ladder = _Ladder(scenarios, experts, gpus, min(slots, experts), upper, incumbent, threads)
    ladder.on_bound = on_bound
    ladder.deadline, ladder.budget_s = begin + time_limit_s, time_limit_s
    ladder.stop = stop
    on_bound(ladder.lower)
    if count and ladder.lower < upper * _CLOSED:
        ladder.count()
    if ladder.lower < upper * _CLOSED:
        ladder.climb(rungs)
    best = ladder.best
    return SearchResult(
        lower=min(ladder.lower, best),
        complete=ladder.complete or ladder.lower >= best * _CLOSED,
        hosts=ladder.hosts,
        value=best,
        method=ladder.method,
        nodes=ladder.nodes,
        seconds=time.monotonic() - begin,
        rung=ladder.rung,
    )


class _Ladder:
    """One layer's tables and the state of the search over targets."""

    on_bound: Callable[[float], None]
    stop: Callable[[], bool]
    deadline: float
    budget_s: float

    def __init__(
        self,
        scenarios: Scenarios,
        experts: int,
        gpus: int,
        slots: int,
        upper: float,
        incumbent: npt.NDArray[np.bool_] | None,
        threads: int,
    ) -> None:
        self.scenarios, self.experts, self.gpus, self.slots = scenarios, experts, gpus, slots
        self.threads = max(1, threads)
        self.best = upper
        self.hosts: npt.NDArray[np.bool_] | None = None
        self.nodes, self.rung, self.complete, self.method = 0, 0.0, False, "scenario"
        # Expert number n of the search is ``order[n]``: popular ones first.
        load = np.bincount(
            scenarios.expert, np.repeat(scenarios.weight, scenarios.sizes), minlength=experts
        )
        self.order = np.argsort(-load, kind="stable")
        # Popularity is the better order by far where it differs much (measured).
        self.dynamic = bool(load.max() < _EVEN * load.min())
        number = np.empty(experts + 1, dtype=np.int64)
        number[self.order] = np.arange(experts)
        number[experts] = experts
        self.members = np.full((len(scenarios), MEMBERS), experts, dtype=np.int64)
        row = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
        column = np.arange(len(scenarios.expert)) - scenarios.ptr[row]
        self.members[row, column] = number[scenarios.expert]
        least = -(-scenarios.sizes // gpus)
        self.base = int(least.min(initial=1))
        self.lower = float((scenarios.weight * least).sum()) * SAFE
        self.often = typical_pairs(experts, gpus, slots, incumbent)

    def count(self) -> None:
        """Counting bound, where most scenarios have equal sizes."""
        sizes = self.scenarios.sizes
        top = int(sizes.max())
        rows = sizes == top
        sets = np.sort(self.members[rows], axis=1)
        _, which = np.unique(sets, axis=0, return_inverse=True)
        weight = np.zeros(int(which.max()) + 1)
        np.add.at(weight, which.ravel(), self.scenarios.weight[rows])
        bound = counting_bound(weight, self.experts, self.gpus, self.slots, top, self.best)
        # The other scenarios take 1 at least, as those of the counting argument do.
        if bound is not None:
            self._raise(bound - 1.0 + 1.0 * SAFE, "counting")

    def _raise(self, bound: float, method: str) -> None:
        if bound > self.lower:
            self.lower, self.method = bound, method
            self.on_bound(bound)

    def climb(self, rungs: tuple[float, ...]) -> None:
        """Prove the highest target that time allows, from the top; then try between rungs."""
        self._prepare()
        failed = 0.0
        for share in sorted(set(rungs), reverse=True):
            if self._over() or share * self.best * _CLOSED <= self.lower:
                break
            if self._rung(share):
                break
            failed = share
        for _ in range(_HALVINGS if failed else 0):
            proved = self.lower / self.best
            share = (failed + proved) / 2.0
            if self._over() or failed - proved < 0.004:
                break
            if not self._rung(share):
                failed = share

    def _over(self) -> bool:
        return time.monotonic() >= self.deadline or self.stop()

    def _prepare(self) -> None:
        self.terms = pair_terms(self.gpus, self.base, self.often)
        added = (self.terms.open4, self.terms.gain3, self.terms.gain2[:, 1:])
        largest = max(int(np.abs(term).max()) for term in added)
        excess = max(self.best - self.base, 1e-9)
        unit = min(LIMIT / largest, _TARGET_LIMIT / GRID / excess)
        self.weight, self.ratio = whole_weights(self.scenarios.weight, unit)
        self.size = np.bitwise_count(np.arange(1 << self.gpus)).astype(np.int64)
        self.weight4, self.root_pair = root_tables(
            self.members, self.weight, self.experts, self.terms
        )
        self.tables32 = (
            self.terms.gain3.astype(np.int32),
            self.terms.gain2.astype(np.int32),
        )
        self.target_best = int(np.ceil((self.best - self.base) / self.ratio * GRID))

    def _rung(self, share: float) -> bool:
        """Search with one target; True if that proved it (or a better plan's value)."""
        goal = (share * self.best - self.base) / self.ratio * GRID
        target = np.array([min(int(np.ceil(goal)), self.target_best)], dtype=np.int64)
        plan = np.zeros(self.experts, dtype=np.int64)
        start = int(target[0])
        finished = self._tree(target, plan)
        if target[0] < start:
            self._take(plan, int(target[0]))
        if not finished:
            return False
        self.rung = share
        self.complete = int(target[0]) == self.target_best
        # The plan that attains the target may be worth a rounding less in floating point.
        self._raise(
            min((self.base + int(target[0]) / GRID * self.ratio) * SAFE, self.best), "pair search"
        )
        return True

    def _take(self, plan: Array, value: int) -> None:
        """Keep a better plan."""
        hosts = np.zeros((self.experts, self.gpus), dtype=np.bool_)
        hosts[self.order] = plan[:, None] >> np.arange(self.gpus) & 1
        exact = leaf_times(self.members, np.append(plan, 0), self.terms.excess)
        cost = self.base + float((self.scenarios.weight * exact).sum())
        self.target_best = min(self.target_best, value)
        if cost < self.best:
            self.best, self.hosts = cost, hosts

    def _tree(self, target: Array, plan: Array) -> bool:
        """Search the whole tree on all threads; False if time ran out or would run out."""
        control = np.zeros(4, dtype=np.int64)
        tables = [_Tables(self) for _ in range(self.threads)]
        empty = np.zeros((0, 2), dtype=np.int64)
        begin = time.monotonic()
        frontier = np.zeros((200_000, 6, 2), dtype=np.int64)
        nowhere = np.zeros((0, 6, 2), dtype=np.int64)
        written, depth = 0, 0
        # Deeper until there is enough to share out.
        for depth in range(min(3, self.experts - 1), min(6, self.experts - 1) + 1):
            trial = target.copy()
            written = self._run(tables[0], empty, depth, trial, plan, control, frontier)
            if trial[0] < target[0]:
                target[:] = trial
            if written < 0 or written > 500 * self.threads or self._over():
                break
        if written < 0 or self._over():
            _raise_failed(control)
            return False
        todo = np.random.default_rng(0).permutation(written).tolist()
        done = 0
        lock = threading.Lock()
        failures: list[BaseException] = []

        def work(own: _Tables) -> None:
            nonlocal done
            try:
                while control[STOP] == 0:
                    with lock:
                        if not todo:
                            return
                        at = todo.pop()
                    prefix = frontier[at, :depth].copy()
                    if self._run(own, prefix, self.experts + 1, target, plan, control, nowhere) < 0:
                        return
                    with lock:
                        done += 1
            except BaseException as error:
                failures.append(error)
                control[STOP] = 1

        workers = [threading.Thread(target=work, args=(own,), daemon=True) for own in tables]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(0.05)
            now = time.monotonic()
            passed, remaining = now - begin, self.deadline - now
            hopeless = passed > _PROBE * self.budget_s and passed * written > (
                passed + remaining
            ) * (done + 1)
            if self._over() or hopeless or control[ERROR] or control[OVERFLOW]:
                control[STOP] = 1
        self.nodes += int(control[NODES])
        if failures:
            raise failures[0]
        _raise_failed(control)
        return done == written

    def _run(
        self,
        own: _Tables,
        prefix: Array,
        limit: int,
        target: Array,
        plan: Array,
        control: Array,
        frontier: Array,
    ) -> int:
        own.reset(self.root_pair)
        gain3, gain2 = self.tables32
        result: int = search(
            self.slots, self.gpus, prefix, limit, own.allowed, own.const, own.unary, own.pair,
            self.weight4, self.members, self.weight, self.terms.excess, gain3, gain2, self.size,
            target, plan, control, frontier, self.dynamic,
        )  # fmt: skip
        return result


class _Tables:
    """Tables of one thread."""

    def __init__(self, ladder: _Ladder) -> None:
        experts, labels = ladder.experts, 1 << ladder.gpus
        self.const = np.zeros(experts + 1, dtype=np.int64)
        self.unary = np.zeros((experts + 1, experts, labels), dtype=np.int32)
        self.pair = np.zeros((experts + 1, experts, experts, labels, labels), dtype=np.int32)
        self.allowed = np.full(experts, (1 << labels) - 2, dtype=np.int64)

    def reset(self, root_pair: npt.NDArray[np.int32]) -> None:
        self.const[0] = 0
        self.unary[0] = 0
        self.pair[0] = root_pair


def _raise_failed(control: Array) -> None:
    if control[ERROR]:
        raise ArithmeticError("a node's bound exceeds the value of its only plan")
    if control[OVERFLOW]:
        raise ArithmeticError("a table entry does not fit into 32 bits")
