"""The throughput–latency front: best plan and bound at limits of the time per output token.

Limits are chosen where the staircase of plans leaves most open: between two neighbours lies a
rectangle of latencies and throughputs, and the largest one is divided. Where few requests are in
flight, one more is percents of the throughput, and a bound 0.01 % below its plan's step cannot tell
whether it fits: such a limit is moved up to that plan's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from moeopt.front.envelope import Envelope
from moeopt.front.plans import Planner
from moeopt.front.throughput import CLOSE, Limited, largest_throughput

#: Neighbouring limits as close as this are not divided.
_NEIGHBOURS = 1.002
#: A limit is moved up by less than this to the step of a plan that just misses it.
_UNDECIDED = 1.005
#: Most times that it is moved.
_MOVES = 4


def front(
    envelope: Envelope,
    planner: Planner,
    *,
    points: int = 16,
    limits_us: Sequence[float] = (),
    close: float = CLOSE,
    on_point: Callable[[Limited], None] = lambda point: None,
) -> list[Limited]:
    """Return points by rising limit.

    Parameters
    ----------
    points : int
        How many, those of ``limits_us`` included.
    limits_us : sequence of float
        Limits that must be among them; with as many as ``points``, there are no others.
    on_point : callable
        Called with each point, in the order in which they are found.

    Notes
    -----
    Ends early when the planner's time is out. Every limit is finite: the loosest is the step time
    of the plan with the largest throughput of all, the tightest that of one request.
    """
    found: dict[float, Limited] = {}

    def add(limit_us: float) -> None:
        found[limit_us] = largest_throughput(envelope, planner, limit_us, close=close)
        on_point(found[limit_us])

    def choose(limit_us: float) -> None:
        """Add this limit, or the next at which it is decided whether one request more fits."""
        middle, most = limit_us, limit_us * _UNDECIDED
        for _ in range(_MOVES):
            point = largest_throughput(envelope, planner, limit_us, close=close)
            if point.plan is None or point.gap is None or point.gap <= close or planner.late:
                break
            planner.plan(min(point.plan.requests + 1, envelope.steady.most))
            slower = [
                (plan.throughput, plan.step_us)
                for plan in planner.made.values()
                if plan is not None
                and limit_us < plan.step_us <= most
                and plan.throughput > point.plan.throughput
            ]
            if not slower:
                break
            limit_us = max(slower)[1]
        add(middle if limit_us in found else limit_us)

    for limit_us in limits_us:
        if not planner.stop():
            add(limit_us)
    if len(found) < points and not planner.stop():
        best = largest_throughput(envelope, planner, close=close).plan
        alone = planner.plan(1)
        for plan in (best, alone):
            if plan is not None and len(found) < points and plan.step_us not in found:
                # Of an interrupted front, too: else nothing would be left of it.
                add(plan.step_us)
    while len(found) < points and not planner.late:
        middle = _widest(sorted(found.values(), key=lambda point: point.limit_us))
        if middle is None:
            break
        choose(middle)
    # Later plans may be better than what an earlier point knew.
    return [
        Limited(point.limit_us, point.bound, planner.best(point.limit_us))
        for point in sorted(found.values(), key=lambda point: point.limit_us)
    ]


def _widest(points: Sequence[Limited]) -> float | None:
    """Limit in the middle of the largest rectangle between neighbours; None if all are small."""
    best, middle = 0.0, None
    for before, after in pairwise(points):
        if after.plan is None or after.limit_us < before.limit_us * _NEIGHBOURS:
            continue
        lower = 0.0 if before.plan is None else before.plan.throughput
        area = (after.limit_us - before.limit_us) * (after.bound - lower)
        if area > best:
            best, middle = area, math.sqrt(before.limit_us * after.limit_us)
    return middle
