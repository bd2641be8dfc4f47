"""Lower bounds for `placement` with many experts on a GPU, in expert-time units.

Two relaxations with whole-GPU columns. Scenarios of up to four experts: pairs, triples and
quadruples of experts on one GPU, pairs of pairs on two, and Gram (positive semidefinite) rows.
Larger ones: pairs alone, in cases. Multipliers come from first-order methods, bounds from exact
evaluation. docs/bounds/psd.md has the derivation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from moeopt.errors import InputError
from moeopt.problem import Scenarios
from moeopt.proofs.psd_ascent import Ascent
from moeopt.proofs.psd_certificate import Certificate, ExactLagrangian
from moeopt.proofs.psd_pairs import CasesAscent, CasesCertificate, evaluate
from moeopt.proofs.psd_patterns import MOST_MEMBERS, Multipliers, Patterns

#: All sets of experts that fill a GPU are gone through for a bound: about 150 million a second.
MOST_SETS = 100_000_000
#: Tables of quadruples have E⁴ entries.
MOST_EXPERTS = 48
#: The star relaxation goes further: its search prunes.
MOST_STAR_EXPERTS = 256
#: Steps between two exact evaluations.
_STEPS = 200


@dataclass(frozen=True)
class PsdBound:
    """A proved lower bound on the expected time of one layer.

    Attributes
    ----------
    value : float
        In expert-time units.
    certificate : Certificate, CasesCertificate or None
        Multipliers that prove it (:func:`verify`); None where counting proves it.
    steps : int
        Of the first-order method.
    """

    value: float
    certificate: Certificate | CasesCertificate | None
    steps: int
    seconds: float


def supports(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> str | None:
    """Why the bound cannot be computed, or None."""
    if gpus * slots < experts:
        return f"{experts} experts do not fit into {gpus} times {slots} slots"
    if gpus * slots > MOST_STAR_EXPERTS:
        return f"{gpus} times {slots} slots are more than {MOST_STAR_EXPERTS}"
    return None


def uses_patterns(scenarios: Scenarios, gpus: int, slots: int) -> bool:
    """Whether the pattern relaxation applies (else: stars)."""
    return (
        int(scenarios.sizes.max(initial=0)) <= MOST_MEMBERS
        and gpus * slots <= MOST_EXPERTS
        and math.comb(gpus * slots, slots) <= MOST_SETS
    )


def psd_bound(
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
    *,
    upper: float | None = None,
    time_limit_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
    steps: int | None = None,
) -> PsdBound:
    """Bound the expected time of one layer over all placements of one copy of each expert.

    Parameters
    ----------
    experts, gpus, slots : int
        GPUs are equal; each hosts at most ``slots`` experts. Free slots count as experts that no
        scenario uses.
    upper : float, optional
        Value of a known plan: the method ends when the bound reaches it.
    time_limit_s : float
        Wall time. At least one bound is evaluated.
    stop : callable
        Asked at every step; True ends the method with the best bound so far.
    on_bound : callable
        Called with every better bound.
    steps : int, optional
        End after so many steps, so that the result does not depend on the clock.

    Raises
    ------
    InputError
        If :func:`supports` has a reason.
    """
    reason = supports(scenarios, experts, gpus, slots)
    if reason is not None:
        raise InputError([reason])
    begin = time.monotonic()

    def over() -> bool:
        return stop() or time.monotonic() - begin > time_limit_s

    counted = _counted(scenarios, gpus, slots)
    if counted is not None:
        on_bound(counted)
        return PsdBound(counted, None, 0, time.monotonic() - begin)
    ascent: Ascent | CasesAscent
    if uses_patterns(scenarios, gpus, slots):
        ascent = Ascent(Patterns.of(gpus, slots), scenarios, over)
    else:
        ascent = CasesAscent(gpus, slots, scenarios, over)
    known = -math.inf
    while True:
        if ascent.value > known:
            known = ascent.value
            on_bound(known)
        enough = upper is not None and known >= upper - 1e-12 * abs(upper)
        left = _STEPS if steps is None else min(_STEPS, steps - ascent.steps_done)
        if enough or left <= 0 or over():
            break
        try:
            ascent.run(left)
            ascent.certify()
        except OverflowError:  # steps that ran away prove nothing: the bound so far stands
            break
    trivial = _trivial(scenarios, gpus)
    seconds = time.monotonic() - begin
    if known < trivial:
        return PsdBound(trivial, None, ascent.steps_done, seconds)
    return PsdBound(known, ascent.certificate, ascent.steps_done, seconds)


def verify(
    certificate: Certificate | CasesCertificate,
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
) -> float:
    """Recompute the bound that a certificate proves, in exact arithmetic, rounded down.

    Multipliers of a wrong sign count as 0, so any finite numbers give a valid bound.
    """
    if isinstance(certificate, CasesCertificate):
        return evaluate(certificate, scenarios, gpus)
    at = Multipliers(certificate.mates, certificate.apart, certificate.distinct, certificate.factor)
    exact = ExactLagrangian(Patterns.of(gpus, slots), scenarios, at, certificate.factor)
    return exact.bound(certificate.price, 1)[0]


def _trivial(scenarios: Scenarios, gpus: int) -> float:
    """Bound by counting: the experts of each scenario are on so many GPUs."""
    # Weights sum to 1 up to rounding: lowered by far more.
    times = -(-scenarios.sizes // gpus)
    return math.fsum((scenarios.weight * times).tolist()) * (1.0 - 2.0**-25)


def _counted(scenarios: Scenarios, gpus: int, slots: int) -> float | None:
    """Bounds where there is nothing to decide: one GPU, or one expert on each."""
    if gpus > 1 and slots > 1:
        return None
    times = scenarios.sizes if gpus == 1 else (scenarios.sizes > 0)
    return math.fsum((scenarios.weight * times).tolist()) * (1.0 - 2.0**-25)
