"""Lower bound for given lengths of the waves: a linear programme over who decodes where.

Unlike the mean step (:mod:`moeopt.joint.step_function`) it knows each wave: its length, which
requests may be in it, its KV cache and, within a range of the number of its requests, what a split
of an expert costs (:mod:`moeopt.joint.minorants`)::

    min   Σ_w D_w (a0 + a1·Σ_c kv_c n_cw / G + Σ_l T_wl)
    s.t.  T_wl >= α·n_w + F           every cut of the wave's domain
          Σ_w n_cw = m_c,   n_cw = 0 where O_c > D_w
          Σ_c kv_c n_cw <= memory beside one copy of every expert
          least_cw <= n_cw <= most_cw,   low_w <= Σ_c n_cw <= high_w
          of waves of equal length, the first holds most requests

Fractions of requests are allowed, and every wave may choose hosts of its own: a relaxation. The
solver (HiGHS, as it comes with scipy) is trusted for nothing: every variable has bounds, so any
multipliers give a bound, which is evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.joint.cost import cost_of, time_of
from moeopt.joint.memory import memory_of, request_classes
from moeopt.joint.minorants import Domain, Minorants, TotalCut
from moeopt.joint.minorants_total import total_cuts
from moeopt.problem import FloatArray, ProblemData
from moeopt.step_bound import kv_memory_mib

# Sums of a few thousand rounded terms: errors are far below this, relative to the sum of their
# sizes; those of a reduced cost are multiplied by its variable's limit.
_ROUNDING = 2.0**-36
_ROUNDING_COST = 2.0**-42

#: Rounds of cuts for one programme; shortfalls of a layer that are left alone.
_ROUNDS = 12
_TOLERANCE = 2e-4

#: A range of the number of requests has cuts of its own if it is narrower than a known one by this.
_NARROWER = 0.8


@dataclass(frozen=True)
class WavesBound:
    """Bound for given lengths and ranges.

    Attributes
    ----------
    value : float
        Lower bound of the makespan in microseconds; ``inf`` if nothing fits.
    requests : float array, shape (C, W), or None
        Where it is attained.
    missing : float array, shape (W,)
        What each wave's layers take beyond the programme's value there (bounds, too).
    """

    value: float
    requests: FloatArray | None
    missing: FloatArray


class WavesProgram:
    """Programmes of one problem; cuts are kept from one to the next.

    Parameters
    ----------
    thorough : bool
        Whether to look for cuts in the number of requests, where all waves have the same length.
    ended : callable
        Whether the time for that is over.
    """

    def __init__(
        self,
        data: ProblemData,
        *,
        thorough: bool = False,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data = data
        requests = request_classes(data)
        self.count = requests.count
        self.cost = cost_of(data.layer_time)
        if data.charged == "resident":
            charges = np.ones((data.layers, data.experts), dtype=np.int64)
        else:
            charges = np.asarray((requests.usage > 0).all(axis=0), dtype=np.int64)
        self.thorough = thorough and len(set(requests.output_tokens.tolist())) == 1
        self.ended = ended
        #: Cuts in the number of requests, by its range.
        self._totals: dict[tuple[int, int], list[TotalCut]] = {}
        self.minorants = Minorants(self.cost, requests.usage, charges, data.gpus, self._cuts_of)

    def _cuts_of(self, low: int, high: int) -> list[TotalCut]:
        """Cuts for waves of so many requests; those of a wider range if it is hardly wider."""
        if not self.thorough:
            return []
        high = min(high, self._most_in_a_wave)
        if high < low:
            return []
        around = [key for key in self._totals if key[0] <= low and high <= key[1]]
        best = min(around, key=lambda key: key[1] - key[0], default=None)
        if best is None or high - low < _NARROWER * (best[1] - best[0]):
            best = (low, high)
            usage, charges = request_classes(self.data).usage, self.minorants.charges
            self._totals[best] = total_cuts(
                self.cost, usage, self.count, charges, self.data.gpus, low, high, self.ended
            )
        return self._totals[best]

    @cached_property
    def _most_in_a_wave(self) -> int:
        """Most requests whose caches fit beside one copy of every expert."""
        memory = memory_of(self.data)
        room, most = int(memory.free.sum()) - memory.copies * memory.expert, 0
        for c in np.argsort(memory.kv, kind="stable").tolist():
            kv, count = int(memory.kv[c]), int(self.count[c])
            more = count if kv == 0 else min(count, room // kv)
            most, room = most + more, room - more * kv
        return most

    def widest(self, length: int) -> Domain:
        """All waves of this length that decode anything."""
        requests = request_classes(self.data)
        most = np.where(requests.output_tokens <= length, requests.count, 0)
        return Domain((0,) * len(most), tuple(most.tolist()), 1, int(most.sum()))

    def bound(
        self, lengths: tuple[int, ...], domains: tuple[Domain, ...], *, memory_share: float = 1.0
    ) -> WavesBound:
        """Bound the makespan with waves of these lengths, all used.

        Parameters
        ----------
        domains : tuple of Domain
            What is known of each wave's requests; none may be empty.
        memory_share : float
            Below 1 the waves leave some memory free: no bound then, but requests easier to place.
        """
        memory_mib = memory_share * max(0.0, kv_memory_mib(self.data))
        best = WavesBound(0.0, None, np.zeros(len(lengths)))
        for _ in range(_ROUNDS):
            solved = self._solve(lengths, domains, memory_mib)
            if solved is None:
                return best
            value, n, times = solved
            added, missing = 0, np.zeros(len(lengths))
            for w, domain in enumerate(domains):
                more, short = self.minorants.cut_off(domain, n[:, w], times[w], _TOLERANCE)
                added += more
                missing[w] = lengths[w] * short
            if value >= best.value:
                best = WavesBound(value, n, missing)
            if not added or missing.sum() <= _TOLERANCE * value:
                break
        return best

    def _rows(
        self, lengths: tuple[int, ...], domains: tuple[Domain, ...], memory_mib: float
    ) -> tuple[sparse.csr_array, FloatArray]:
        """Inequalities ``a @ x <= b``; variables: n and T of each wave, then what each lacks."""
        data, requests = self.data, request_classes(self.data)
        classes, waves = len(requests.count), len(lengths)
        each = classes + data.layers
        blocks, memory_rows = [], []
        limits: list[float] = []
        for domain in domains:
            cuts = self.minorants.cuts(domain)
            rows = len(cuts.floor)
            block = np.zeros((rows + 2, each))
            block[:rows, :classes] = np.stack(cuts.slope)
            block[np.arange(rows), classes + np.array(cuts.layer)] = -1.0
            block[rows, :classes] = requests.kv_mib
            block[rows + 1, :classes] = 1.0
            blocks.append(sparse.csr_array(block))
            memory_rows.append(len(limits) + rows)
            limits += [-f for f in cuts.floor] + [memory_mib, float(domain.high)]
        a = sparse.csr_array(sparse.block_diag(blocks))
        order = [w for w in range(waves - 1) if lengths[w] == lengths[w + 1]]
        more = np.zeros((waves + len(order), waves, each))
        more[np.arange(waves), np.arange(waves), :classes] = -1.0
        limits += [-float(domain.low) for domain in domains]
        for i, w in enumerate(order, start=waves):
            more[i, w, :classes] = -1.0
            more[i, w + 1, :classes] = 1.0
        limits += [0.0] * len(order)
        a = sparse.csr_array(
            sparse.vstack([a, sparse.csr_array(more.reshape(waves + len(order), -1))])
        )
        # Whatever a wave lacks, or holds too much, may be bought.
        lacking = np.zeros((a.shape[0], waves))
        for w, row in enumerate(memory_rows):
            lacking[row, w] = -float(requests.kv_mib.max())
        first = a.shape[0] - len(order) - waves
        lacking[first + np.arange(waves), np.arange(waves)] = -1.0
        lacking[first + waves + np.arange(len(order)), np.array(order, dtype=np.int64) + 1] = -1.0
        return sparse.csr_array(sparse.hstack([a, sparse.csr_array(lacking)])), np.array(limits)

    def _solve(
        self, lengths: tuple[int, ...], domains: tuple[Domain, ...], memory_mib: float
    ) -> tuple[float, FloatArray, FloatArray] | None:
        """Return a safe bound, n (C, W) and T (W, L); None if the solver gives nothing."""
        data, requests = self.data, request_classes(self.data)
        classes, waves, layers = len(requests.count), len(lengths), data.layers
        each = classes + layers  # the variables of a wave: n, then T
        steps = np.array(lengths, dtype=np.float64)
        count = requests.count.astype(np.float64)
        tokens = float(count @ requests.usage.sum(axis=2).max(axis=1))
        longest = 2.0 * time_of(self.cost, data.experts, tokens)  # no layer needs more
        attention = data.attention_us_per_mib * requests.kv_mib / data.gpus
        # Requests without a wave, and what a wave lacks, at a price: never infeasible.
        price = float(steps.max()) * (layers * longest + float(attention.max()))
        objective = np.concatenate(
            [d * np.append(attention, np.ones(layers)) for d in steps]
            + [np.full(waves + classes, price)]
        )
        a, b = self._rows(lengths, domains, memory_mib)
        a = sparse.csr_array(sparse.hstack([a, sparse.csr_array(np.zeros((a.shape[0], classes)))]))
        share = np.hstack([np.eye(classes), np.zeros((classes, layers))])
        together = sparse.csr_array(
            np.hstack([share] * waves + [np.zeros((classes, waves)), np.eye(classes)])
        )
        lower = np.concatenate(
            [np.append(domain.least, np.zeros(layers)) for domain in domains]
            + [np.zeros(waves + classes)]
        )
        upper = np.concatenate(
            [np.append(domain.most, np.full(layers, longest)) for domain in domains]
            + [[float(domain.high) for domain in domains], count]
        )
        # scipy-stubs knows dense matrices only.
        result = linprog(  # type: ignore[call-overload]
            objective, A_ub=a, b_ub=b, A_eq=together, b_eq=count,
            bounds=np.stack([lower, upper], axis=1), method="highs",
        )  # fmt: skip
        if result.status != 0:
            return None
        y = np.minimum(result.ineqlin.marginals, 0.0)
        z = result.eqlin.marginals
        sizes = objective + abs(a).T @ np.abs(y) + abs(together).T @ np.abs(z)
        reduced = objective - a.T @ y - together.T @ z - _ROUNDING_COST * sizes
        terms = np.concatenate([y * b, z * count, np.minimum(reduced * lower, reduced * upper)])
        value = float(terms.sum() - _ROUNDING * np.abs(terms).sum())
        value += float(steps.sum()) * data.attention_base_us * (1.0 - _ROUNDING)
        x = result.x[: waves * each].reshape(waves, each)
        n = np.maximum(0.0, x[:, :classes].T)
        return value, n, x[:, classes:].copy()
