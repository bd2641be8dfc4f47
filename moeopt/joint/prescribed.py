"""Prescribed waves that share one placement: layer functions of all waves at once, and a knapsack.

Which requests decode together is given, so the steps of every wave, its tokens and its cache are.
Layers share nothing but memory, and of memory only how many replicas there are: let ``F_l(r)`` be
the least ``Σ_w D_w T_wl`` of layer l under one placement with r additional replicas. Then the
makespan is at least ``min { Σ_l F_l(r_l) + attention(Σ r_l) : Σ r_l <= R }``, R the replicas that
fit beside the fullest wave's cache. Of every F_l(r) two sides are kept:

- from below, each wave at its own best (:mod:`moeopt.joint.layer_bound`); where resident replicas
  are charged, the mean step, too; for few experts the search over hosts
  (:mod:`moeopt.joint.prescribed_tree`), run for those r that the knapsack chooses, as long as the
  two sides differ;
- from above, annealed hosts (:mod:`moeopt.joint.prescribed_search`).

A plan takes the replicas that the knapsack chooses from above.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from moeopt.joint.assemble import Assembler
from moeopt.joint.knapsack import share_out
from moeopt.joint.layer_bound import layer_bound
from moeopt.joint.memory import request_classes
from moeopt.joint.prescribed_search import search_hosts
from moeopt.joint.prescribed_tree import EXPERTS_LIMIT, GPUS_LIMIT, hosts_tree
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.joint.wave_hosts import BoolArray
from moeopt.joint.waves import wave_steps
from moeopt.problem import FloatArray, IntArray, ProblemData
from moeopt.solution import Solution

# Sums of a few thousand rounded terms of one sign: far below this, by which bounds are lowered.
_SAFE = 1.0 - 2.0**-30
_SAFE_LAYER = 1.0 - 2.0**-36

#: A layer's two sides this close are left alone.
_CLOSE = 2e-5
#: Nodes of the first search over a layer's hosts; each further one of it has _MORE times as many.
_NODES, _MORE = 20_000, 4
_NODES_LIMIT = 2_000_000
#: Moves of the annealing of a layer for each number of replicas; again after so many searches.
_MOVES, _MOVES_AGAIN, _TURNS = 4_000, 60_000, 3


@dataclass(frozen=True)
class PrescribedBound:
    """What is proved of prescribed waves.

    Attributes
    ----------
    value : float
        Lower bound of the makespan in microseconds (expert-time units for ``unit``).
    solution : Solution or None
        The best plan; None if none was found.
    """

    value: float
    solution: Solution | None


def is_prescribed(data: ProblemData) -> bool:
    """Whether :func:`solve_prescribed` takes a problem: its waves are given, its slots free."""
    return data.wave_requests is not None and not data.uniform_slots


def solve_prescribed(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = math.inf,
    enough: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
    on_plan: Callable[[Solution], None] = lambda solution: None,
) -> PrescribedBound:
    """Bound and plan prescribed waves (module docstring).

    Parameters
    ----------
    data : ProblemData
        See :func:`is_prescribed`; the waves fit the memory.
    enough : float
        The search ends as soon as the bound reaches this.
    """
    deadline = time.monotonic() + time_limit_s
    layers = PrescribedLayers(data, seed)

    def ended() -> bool:
        return time.monotonic() > deadline or stop()

    best_us, best, fitted_us = math.inf, None, math.inf
    value, _ = layers.bound()
    on_bound(value)
    layers.anneal(_MOVES, ended)
    for turn in count():
        makespan_us, _ = layers.chosen(layers.replicas)
        if makespan_us < fitted_us * (1.0 - _CLOSE):
            fitted_us, made = makespan_us, layers.plan()
            if made is not None and made[0] < best_us:
                best_us, best = made
                on_plan(best)
        value, chosen = layers.bound()
        on_bound(value)
        if value >= min(enough, best_us * (1.0 - _CLOSE)) or ended():
            break
        if turn == _TURNS:
            layers.anneal(_MOVES_AGAIN, ended)
        elif not layers.tighten(chosen, ended) and turn > _TURNS:
            break
    return PrescribedBound(value, best)


class PrescribedLayers:
    """Both sides of ``F_l(r)`` of every layer, for r = 0, …, ``most`` additional replicas.

    The last entry from below holds for more, too.
    """

    def __init__(self, data: ProblemData, seed: int = 0) -> None:
        assert data.wave_requests is not None
        self.data, self.seed = data, seed
        self.assembler = Assembler(data, seed)
        self.step = self.assembler.step
        counts = data.wave_requests
        self.counts = counts
        steps = wave_steps(data, counts)
        requests = request_classes(data)
        tokens = np.einsum("cw,cle->wle", counts.astype(np.float64), requests.usage)
        self.all_steps, self.all_tokens = steps, tokens
        self.used = np.flatnonzero(steps)
        self.steps = steps[self.used].astype(np.float64)
        #: Of a step of each wave, shape (W, E), one a layer.
        self.tokens = [np.ascontiguousarray(tokens[self.used, l]) for l in range(data.layers)]
        memory = self.assembler.memory
        caches = (counts * memory.kv[:, None]).sum(axis=0)
        self.replicas = memory.additional(int(caches.max()))
        self.most = min(2 * data.gpus, data.experts * (data.gpus - 1))
        self.slots = data.experts if data.slots is None else min(data.slots, data.experts)
        used = np.arange(min(max(0, self.replicas), data.layers * self.most) + 1)
        caches_mib = (requests.kv_mib @ counts)[self.used]
        #: Of all steps, with 0, 1, … additional replicas in all.
        self.attention: FloatArray = np.stack(
            [
                d * self.step.attention(float(cache_mib), used, True)
                for d, cache_mib in zip(self.steps, caches_mib, strict=True)
            ]
        ).sum(axis=0)
        #: Of each layer and wave with up to G − 1 additional replicas, shape (L, W, G).
        self.alone = np.stack([self._alone(l) for l in range(data.layers)])
        last = np.minimum(np.arange(self.most + 1), data.gpus - 1)
        self.lower = np.einsum("w,lwr->lr", self.steps, self.alone)[:, last]
        if self.step.resident:
            self.lower = np.maximum(self.lower, self._mean()[:, last])
        self.upper = np.full((data.layers, self.most + 1), np.inf)
        self.hosts: dict[tuple[int, int], BoolArray] = {}
        self.annealed = False
        for l in range(data.layers):
            hosts = self._single_copies(l)
            self._keep(l, 0, hosts, self._shares(l, hosts)[0])
        self.nodes = np.full((data.layers, self.most + 1), _NODES)
        self.few = (
            data.experts <= EXPERTS_LIMIT and data.gpus <= GPUS_LIMIT and not self.step.resident
        )

    # --- from below

    def _alone(self, l: int) -> FloatArray:
        """Bound each wave of a layer alone, shape (W, G)."""
        return np.stack(
            [
                layer_bound(
                    self.step.cost,
                    tokens,
                    self.data.gpus,
                    charged=self.step.charged(l, tokens, False),
                    tree=True,
                )[0]
                for tokens in self.tokens[l]
            ]
        )

    def _mean(self) -> FloatArray:
        """All steps at their mean tokens: layer times are convex if all hosts are charged."""
        whole = float(self.steps.sum())
        charged = np.ones(self.data.experts, dtype=np.int64)
        rows = [
            layer_bound(
                self.step.cost, self.steps @ w / whole, self.data.gpus, charged=charged, tree=True
            )[0]
            for w in self.tokens
        ]
        return whole * _SAFE_LAYER * np.stack(rows)

    def bound(self) -> tuple[float, IntArray]:
        """Lower bound of the makespan, and the replicas of each layer that attain it."""
        total, chosen = share_out(self.lower, self.replicas, self.attention)
        return total * _SAFE, chosen

    def tighten(self, chosen: IntArray, ended: Callable[[], bool]) -> bool:
        """Search the layers whose two sides differ at these replicas; False if none is left."""
        rows = np.arange(len(chosen))
        short = self.upper[rows, chosen] / self.lower[rows, chosen] - 1.0
        searched = False
        for l in np.argsort(-short, kind="stable").tolist():
            r = int(chosen[l])
            # With as many replicas as are counted the bound holds for more: it stays each wave's.
            if short[l] <= _CLOSE or r == self.most or self.nodes[l, r] > _NODES_LIMIT:
                continue
            if not self.few or ended():
                break
            self._search(l, r)
            searched = True
        return searched

    def _search(self, l: int, r: int) -> None:
        """Search the hosts of a layer with at most r additional replicas."""
        target = float(self.upper[l, r]) * (1.0 - 0.5 * _CLOSE)
        least = self.alone[l, :, min(r, self.data.gpus - 1)]
        bound, masks, _ = hosts_tree(
            self.step.cost, self.tokens[l], self.steps, np.ascontiguousarray(least),
            self.data.gpus, r, self.slots, target, int(self.nodes[l, r]),
        )  # fmt: skip
        self.nodes[l, r] *= _MORE
        self.lower[l, : r + 1] = np.maximum(self.lower[l, : r + 1], bound * _SAFE_LAYER)
        if masks.all():
            hosts = (masks[:, None] >> np.arange(self.data.gpus)) & 1 > 0
            self._keep(l, r, hosts, self._shares(l, hosts)[0])

    # --- from above

    def anneal(self, moves: int, ended: Callable[[], bool]) -> None:
        """Look for hosts of every layer with as many replicas as the knapsack may choose."""
        most = int(self.chosen(self.replicas)[1].max()) + 2 if self.annealed else self.most
        for l in range(self.data.layers):
            if ended():
                return
            self._anneal(l, min(most, self.most, max(0, self.replicas)), moves)
        self.annealed = True

    def _anneal(self, l: int, most: int, moves: int) -> None:
        """Improve the hosts of a layer, from no additional replicas to ``most``."""
        goal = float(self.lower[l, self.most]) * (1.0 + 0.5 * _CLOSE)
        least = np.ascontiguousarray(self.alone[l, :, -1])
        for r in range(most + 1):
            start = self.hosts[l, r]
            total, hosts, _ = search_hosts(
                self.step.cost, self.tokens[l], self.steps, least, start,
                self._shares(l, start)[1], r, self.slots, self.step.resident, goal, moves,
                self.seed + l,
            )  # fmt: skip
            self._keep(l, r, hosts, float(total))

    def _single_copies(self, l: int) -> BoolArray:
        """One copy of each expert, dealt out by weight."""
        order = np.argsort(-(self.steps @ self.tokens[l]), kind="stable")
        hosts = np.zeros((self.data.experts, self.data.gpus), dtype=bool)
        hosts[order, np.arange(len(order)) % self.data.gpus] = True
        return hosts

    def _keep(self, l: int, r: int, hosts: BoolArray, total: float) -> None:
        """Keep hosts for r and more additional replicas where they are better."""
        for more in range(r, self.most + 1):
            if total < self.upper[l, more]:
                self.upper[l, more] = total
                self.hosts[l, more] = hosts

    def _shares(self, l: int, hosts: BoolArray) -> tuple[float, FloatArray]:
        """Value of hosts, and how the waves split their tokens over them."""
        total, shares = 0.0, np.zeros((len(self.used), *hosts.shape))
        for w, tokens in enumerate(self.tokens[l]):
            weight = np.where(hosts, 1.0, 0.0)
            layer_us, shares[w] = dispatch_wave(
                self.step.cost, tokens, hosts, weight, self.step.resident
            )
            total += float(self.steps[w]) * float(layer_us)
        return total, shares

    def chosen(self, replicas: int) -> tuple[float, IntArray]:
        """Makespan of the best known layers with so many replicas, and each layer's."""
        return share_out(self.upper, replicas, self.attention)

    def plan(self) -> tuple[float, Solution] | None:
        """Put the best known layers together; replicas are given up until the requests fit."""
        best = self._plan_with(self.replicas)
        if best is not None:
            return best
        fails, fits, given_up = self.replicas, -1, 1
        while best is None and fails > 0:
            fewer = max(0, self.replicas - given_up)
            best = self._plan_with(fewer)
            fails, fits = (fewer, fits) if best is None else (fails, fewer)
            given_up *= 2
        while best is not None and fails - fits > 1:
            middle = (fits + fails) // 2
            more = self._plan_with(middle)
            fails, fits = (middle, fits) if more is None else (fails, middle)
            best = best if more is None else min(best, more, key=lambda plan: plan[0])
        return best

    def _plan_with(self, replicas: int) -> tuple[float, Solution] | None:
        """Plan with at most so many additional replicas; None if the requests do not fit."""
        _, chosen = self.chosen(replicas)
        hosts = [self.hosts[l, int(r)] for l, r in enumerate(chosen)]
        shares = np.zeros((len(self.all_steps), len(hosts), *hosts[0].shape))
        for l, layer in enumerate(hosts):
            shares[self.used, l] = self._shares(l, layer)[1]
        return self.assembler.fit(hosts, shares, self.counts, self.all_tokens, self.all_steps)
