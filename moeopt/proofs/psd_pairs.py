"""The star relaxation in cases: which of some pairs of experts share a GPU.

Popular pairs are cheap to keep together in a mixture of sets but not in a placement. For a list of
pairs, a placement either has the first of them that is together, or all of them are apart: the
least of the bounds of these cases is a bound. docs/bounds/psd.md, "Cases".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.psd_stars import Assumption, ExactStars, StarAscent, together

#: Cases begin when this many steps improve the bound by less than this.
_STALL_STEPS, _STALL_GAIN = 200, 4e-3
#: Steps of a case at a time, its rounds of pricing, and how often a new one is tried.
_CASE_STEPS, _CASE_ROUNDS, _TRIES = 50, 2, 3
#: New cases between two improvements of the last one, and steps of these.
_CASES, _LAST_STEPS, _LAST_ROUNDS = 8, 100, 3
#: Each case keeps about 2 MB of multipliers and sets.
_MOST_CASES = 200
#: Pairs that share less of a GPU are left alone.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class CasesCertificate:
    """Multipliers of all cases.

    Attributes
    ----------
    pairs : int array, shape (n, 2)
        Experts; in case k the first k pairs are apart and the next one, if any, is together.
    apart : int array, shape (n + 1,)
        So many of the first pairs are used to be apart in each case, at most k in case k.
    share : float array, shape (n + 1, scenarios.ptr[-1])
    price : float array, shape (n + 1, E)
        As in :class:`moeopt.proofs.psd_stars.StarCertificate`.
    """

    pairs: IntArray
    apart: IntArray
    share: FloatArray
    price: FloatArray


def evaluate(certificate: CasesCertificate, scenarios: Scenarios, gpus: int) -> float:
    """The bound that multipliers prove, in exact arithmetic, rounded down."""
    pairs, cases = certificate.pairs, len(certificate.pairs) + 1
    lengths = [len(part) for part in (certificate.apart, certificate.share, certificate.price)]
    if lengths != [cases] * 3:
        raise ValueError(f"{cases} cases need as many numbers of pairs, shares and prices")
    experts = certificate.price.shape[1]
    value = math.inf
    for k in range(cases):
        apart = np.zeros((experts, experts), dtype=np.bool_)
        for i, j in pairs[: min(k, max(0, int(certificate.apart[k])))]:
            apart[i, j] = apart[j, i] = True
        given = Assumption(tuple(pairs[k].tolist()) if k < cases - 1 else (), apart)
        exact = ExactStars(scenarios, gpus, certificate.share[k], given)
        value = min(value, exact.bound(certificate.price[k], 1)[0])
    return value


class CasesAscent:
    """State of the method for one layer; the same interface as :class:`StarAscent`."""

    def __init__(
        self, gpus: int, size: int, scenarios: Scenarios, stop: Callable[[], bool]
    ) -> None:
        self.scenarios, self.stop = scenarios, stop
        self.last = StarAscent(gpus, size, scenarios, stop)
        self.cases: list[StarAscent] = []
        self.steps_done = 0
        self.stalled = self.last.value
        self.steps_stalled = 0
        self.weight = _pair_weights(scenarios, gpus * size)
        self.splitting = False

    @property
    def value(self) -> float:
        """Best bound so far, exact."""
        return min([self.last.value, *(case.value for case in self.cases)])

    @property
    def certificate(self) -> CasesCertificate | None:
        """What proves it."""
        proofs = [part.certificate for part in [*self.cases, self.last]]
        known = [proof for proof in proofs if proof is not None]
        if len(known) < len(proofs):
            return None
        pairs = [case.given.together for case in self.cases]
        return CasesCertificate(
            np.array(pairs, dtype=np.int64).reshape(-1, 2),
            np.array([np.count_nonzero(proof.given.apart) // 2 for proof in known]),
            np.array([proof.share for proof in known]),
            np.array([proof.price for proof in known]),
        )

    def run(self, steps: int) -> None:
        """Take some steps (fewer if told to stop), in the weakest case or a new one."""
        if not self.splitting:
            self._run(self.last, steps)
            self.steps_stalled += steps
            return
        most = min(len(self.cases) + _CASES, _MOST_CASES)
        shared = together(self.last.sets, self.last.share, self.last.experts)
        while len(self.cases) < most and not self.stop():
            # Heavy pairs make strong cases; those that the mixture has together bring something.
            score = self.weight * (shared > _LEAST_SHARE)
            i, j = np.unravel_index(np.argmax(score), score.shape)
            if score[i, j] == 0.0:
                break
            self.weight[i, j] = 0.0
            self._improve_weak(steps)
            self._split(int(i), int(j), steps)
        self._improve_weak(steps)
        self._run(self.last, min(steps, _LAST_STEPS))

    def certify(self) -> None:
        """Evaluate the last case exactly; decide whether to split it."""
        if self.splitting:
            self.last.certify(_LAST_ROUNDS)
            return
        self.last.certify()
        if self.steps_stalled >= _STALL_STEPS:
            gain = self.last.value - self.stalled
            self.splitting = gain < _STALL_GAIN
            self.stalled, self.steps_stalled = self.last.value, 0

    def _run(self, part: StarAscent, steps: int) -> None:
        before = part.steps_done
        part.run(steps)
        self.steps_done += part.steps_done - before

    def _improve_weak(self, steps: int) -> None:
        """Improve the weakest case if it holds down the bound."""
        for _ in range(_TRIES):
            weakest = min(self.cases, key=lambda case: case.value, default=self.last)
            if weakest is self.last or weakest.value >= self.last.value or self.stop():
                return
            self._run(weakest, min(steps, _CASE_STEPS))
            weakest.certify(_CASE_ROUNDS)

    def _split(self, i: int, j: int, steps: int) -> None:
        """Let two experts be apart in the last case if a case of its own is no weaker."""
        case = self.last.assuming(i, j)
        for tried in range(_TRIES):
            if tried:
                self._run(case, min(steps, _CASE_STEPS))
            case.certify(_CASE_ROUNDS)
            if case.value >= self.last.value:
                self.cases.append(case)
                self.last.forbid(i, j)
                return
            if self.stop():
                return


def _pair_weights(scenarios: Scenarios, experts: int) -> FloatArray:
    """Weight of the scenarios that have both experts of a pair i < j, shape (E, E)."""
    weight = np.zeros((experts, experts))
    for size in np.unique(scenarios.sizes):
        rows = np.nonzero(scenarios.sizes == size)[0]
        sets = scenarios.expert[scenarios.ptr[rows][:, None] + np.arange(size)]
        for a in range(size):
            for b in range(a):
                np.add.at(weight, (sets[:, b], sets[:, a]), scenarios.weight[rows])
    return weight
