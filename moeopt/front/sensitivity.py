"""What one GiB a GPU is worth, for replicas and for KV cache, and where replicas stop paying.

Every number is an interval: a checked plan's throughput from below, the bound of the same n (or,
where n is free, of all n) from above. A change is certified if its interval does not contain 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.errors import InputError
from moeopt.front.envelope import Envelope
from moeopt.front.plans import Planner, SteadyPlan
from moeopt.front.steady import SteadyState, steady_state
from moeopt.front.throughput import largest_throughput
from moeopt.instance import Instance
from moeopt.units import BYTES_PER_MIB

#: Differences of throughputs are small: plans are wanted this close to their bounds.
_CLOSE = 1e-4
_BYTES_PER_GIB = 1024 * BYTES_PER_MIB


@dataclass(frozen=True)
class Case:
    """One change of memory, or none.

    Attributes
    ----------
    name : str
    more_gib : float
        Memory added to each GPU.
    requests : int
    replicas_room : int
        Additional replicas for which there is memory beside the cache of so many requests.
    plan : SteadyPlan or None
    bound : float
        Tokens a second.
    within : bool
        Whether the plan keeps the limit of the time per output token.
    """

    name: str
    more_gib: float
    requests: int
    replicas_room: int
    plan: SteadyPlan | None
    bound: float
    within: bool

    def change_from(self, base: Case) -> tuple[float, float] | None:
        """Return least and largest change of the tokens a second; None without plans."""
        if self.plan is None or base.plan is None:
            return None
        return self.plan.throughput - base.bound, self.bound - base.plan.throughput


@dataclass(frozen=True)
class ReplicasPay:
    """Where additional replicas stop paying, with these requests in flight.

    Attributes
    ----------
    proved : int
        With at most so many additional replicas every plan is slower than ``plan``; -1 if that is
        proved for none.
    memory_mib : float
        Memory of a GPU (their mean) that holds ``proved + 1`` of them beside everything else.
    plan : SteadyPlan
        Best plan found with memory for all replicas that can be useful.
    bound : float
        Tokens a second that no plan exceeds, whatever the memory.
    curve : list of (int, float)
        Additional replicas, and the tokens a second that no plan with at most so many exceeds.
    """

    proved: int
    memory_mib: float
    plan: SteadyPlan
    bound: float
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class Sensitivity:
    """Answer of :func:`sensitivity`; the first of ``cases`` is the one without a change."""

    limit_us: float
    cases: list[Case]
    pays: ReplicasPay | None


def sensitivity(
    instance: Instance,
    *,
    limit_us: float = math.inf,
    requests: int | None = None,
    gib: float = 1.0,
    seed: int = 0,
    deadline: float = math.inf,
    close: float = _CLOSE,
    stop: Callable[[], bool] = lambda: False,
    on_case: Callable[[Case], None] = lambda case: None,
) -> Sensitivity:
    """Re-solve with ``gib`` more and less memory on each GPU.

    Parameters
    ----------
    limit_us : float
        Of the time per output token.
    requests : int, optional
        Requests in flight before the change; those of the largest throughput if absent.
    deadline : float
        Of ``time.monotonic``, for plans: bounds and cases that need none follow in any case.
    stop : callable
        Whether to end with the cases that are there.

    Raises
    ------
    InputError
        The requests do not fit, or no plan keeps the limit.
    """
    effort = _Effort(seed, deadline, stop)
    before = _World(instance, 0.0, effort)
    if requests is None:
        best = largest_throughput(before.envelope, before.planner, limit_us, close=close).plan
        if best is None and stop():
            raise KeyboardInterrupt  # nothing is there to end with
        if best is None:
            raise InputError(f"no plan was found within {limit_us:g} µs for each output token")
        requests = best.requests
    if not 1 <= requests <= before.steady.most:
        raise InputError(f"requests: {requests} is not between 1 and {before.steady.most}")
    cases: list[Case] = []

    def add(case: Case | None) -> None:
        if case is not None:
            cases.append(case)
            on_case(case)

    add(before.fixed("now", requests, limit_us))
    more, less = gib * before.steady.data.gpus, -gib * before.steady.data.gpus
    for sign, change in (("+", more), ("-", less)):
        if stop():
            return Sensitivity(limit_us, cases, None)
        try:
            world = _World(instance, change / before.steady.data.gpus, effort)
        except InputError:  # not even one copy of every expert fits any more
            continue
        cached = before.requests_with(requests, change, world)
        add(world.fixed(f"{sign} replicas", requests, limit_us))
        add(world.fixed(f"{sign} KV", cached, limit_us))
        add(world.free(f"{sign} best use", limit_us, close))
    add(before.fixed("KV to replicas", before.requests_with(requests, less, before), limit_us))
    add(before.fixed("replicas to KV", before.requests_with(requests, more, before), limit_us))
    return Sensitivity(limit_us, cases, _where_replicas_stop(before, requests, effort))


@dataclass(frozen=True)
class _Effort:
    """How long plans are made, and with which seed."""

    seed: int
    deadline: float
    stop: Callable[[], bool]


class _World:
    """The instance with some memory."""

    def __init__(self, instance: Instance, more_gib: float, effort: _Effort) -> None:
        self.more_gib = more_gib
        self.steady: SteadyState = steady_state(instance, more_gib=more_gib)
        self.envelope = Envelope(self.steady)
        self.planner = Planner(
            self.steady, seed=effort.seed, deadline=effort.deadline, stop=effort.stop
        )

    def requests_with(self, requests: int, change_gib: float, world: _World) -> int:
        """Most requests whose cache is that of so many and the change; 0 if there are none."""
        room = int(self.envelope.cache[requests]) + round(change_gib * _BYTES_PER_GIB)
        fitting = np.flatnonzero(world.envelope.cache <= room)
        return int(fitting[-1]) if len(fitting) else 0

    def _room(self, requests: int) -> int:
        return self.envelope.memory.additional(int(self.envelope.cache[requests]))

    def fixed(self, name: str, requests: int, limit_us: float) -> Case | None:
        """Return the case with so many requests; None if they do not fit."""
        if not 1 <= requests <= self.steady.most or self._room(requests) < 0:
            return None
        plan = None if self.planner.late else self.planner.plan(requests)
        bound = self.envelope.range(requests, requests).throughput
        within = plan is not None and plan.step_us <= limit_us
        return Case(name, self.more_gib, requests, self._room(requests), plan, bound, within)

    def free(self, name: str, limit_us: float, close: float) -> Case | None:
        """Return the case with the number of requests that decodes most; None if stopped."""
        if self.planner.stop():
            return None  # its bound alone takes seconds
        found = largest_throughput(self.envelope, self.planner, limit_us, close=close)
        if found.plan is None:
            return None
        n = found.plan.requests
        return Case(name, self.more_gib, n, self._room(n), found.plan, found.bound, True)


def _where_replicas_stop(before: _World, requests: int, effort: _Effort) -> ReplicasPay | None:
    """Compare the best plan with memory for every useful replica with bounds for fewer."""
    if before.planner.late:
        return None
    data, memory = before.steady.data, before.envelope.memory
    useful = data.layers * data.experts * (data.gpus - 1)
    if not data.uniform_slots:
        useful = data.layers * (data.gpus - 1)
    more = (useful + data.gpus) * data.expert_mib / data.gpus / 1024
    large = _World(before.steady.instance, more, effort)
    plan = large.planner.plan(requests)
    if plan is None:
        return None

    def throughput(replicas: int) -> float:
        return before.envelope.with_replicas(requests, replicas).throughput

    low, high = -1, useful  # more than `low` is needed for the plan's throughput
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if throughput(middle) < plan.throughput else (low, middle)
    shown = sorted({0, *(useful * i // 8 for i in range(1, 9)), low + 1})
    taken = memory.expert * (memory.copies + low + 1) + int(before.envelope.cache[requests])
    assert data.free_mib is not None
    outside = sum(
        node.gpus * (node.memory_mib or 0.0) for node in before.steady.instance.cluster.nodes
    ) - float(data.free_mib.sum())
    return ReplicasPay(
        proved=low,
        memory_mib=(outside + taken / BYTES_PER_MIB) / data.gpus,
        plan=plan,
        bound=throughput(useful),
        curve=[(r, throughput(r)) for r in shown],
    )
