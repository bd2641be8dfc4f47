"""Largest throughput under a limit of the time per output token: a checked plan and its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moeopt.front.envelope import Envelope, Range
from moeopt.front.plans import Planner, SteadyPlan

#: A plan this close to the bound is taken.
CLOSE = 1e-3
#: Most plans that are made for one limit.
_TRIES = 8


@dataclass(frozen=True)
class Limited:
    """The best that is known for one limit.

    Attributes
    ----------
    limit_us : float
        Of the step time; infinite for none.
    bound : float
        Tokens a second that no plan within the limit exceeds; 0 if there is no such plan.
    plan : SteadyPlan or None
    """

    limit_us: float
    bound: float
    plan: SteadyPlan | None

    @property
    def gap(self) -> float | None:
        """(bound − throughput) / bound; None without a plan."""
        return None if self.plan is None else max(0.0, 1.0 - self.plan.throughput / self.bound)


def largest_throughput(
    envelope: Envelope, planner: Planner, limit_us: float = math.inf, *, close: float = CLOSE
) -> Limited:
    """Search the largest throughput of plans whose step takes at most ``limit_us``.

    The first n of :meth:`Envelope.singles` gives the bound. It is planned; if the plan is too slow
    for the limit, the same search for a limit that is shorter by as much gives the next n.

    Raises
    ------
    AssertionError
        A checked plan is better than the bound: a defect of the bound or of the checker.
    """
    known = planner.best(limit_us)
    first = next(envelope.singles(limit_us), None)
    if first is None:
        if known is not None:
            raise AssertionError(f"limit {limit_us}: a plan exists where the bound excludes all")
        return Limited(limit_us, 0.0, None)
    candidate: Range | None = first
    most = envelope.steady.most
    slack, above = 0.0, 0.0
    for _ in range(_TRIES):
        best = planner.best(limit_us)
        if planner.stop() or (
            best is not None and (planner.late or best.throughput >= first.throughput * (1 - close))
        ):
            break
        if candidate is None or (
            best is not None and candidate.throughput / (1 + above) <= best.throughput
        ):
            break  # no other n promises more
        n = candidate.first
        plan = planner.plan(n)
        if planner.stop():
            break
        if plan is None:  # no room for whole requests and experts: a little less memory
            most = min(most, n - max(1, n // 500))
        else:
            own = plan.step_us / envelope.range(n, n).step_us - 1
            above = own
            if best is not None:
                at = best.requests
                above = min(own, best.step_us / envelope.range(at, at).step_us - 1)
                if plan.throughput < best.throughput and at < n and plan.step_us <= limit_us:
                    most = min(most, (at + n) // 2)  # memory too full for a good plan
            # Too slow: a tighter limit. It fits: what lies between is left to the other tries.
            slack = max(1.2 * slack, own) if plan.step_us > limit_us else 0.5 * slack
        candidate = _next(envelope, planner, limit_us / (1 + slack), most)
    best = planner.best(limit_us)
    if best is not None and best.throughput > first.throughput:
        raise AssertionError(
            f"limit {limit_us}: throughput {best.throughput} is above its bound {first.throughput}"
        )
    return Limited(limit_us, first.throughput, best)


def _next(envelope: Envelope, planner: Planner, limit_us: float, most: int) -> Range | None:
    """First n, by bound, that was not planned yet."""
    for found in envelope.singles(limit_us, most=most):
        if found.first not in planner.made:
            return found
    return None
