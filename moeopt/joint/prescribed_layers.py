"""Both sides of the layer functions of prescribed waves (:mod:`moeopt.joint.prescribed`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeopt.joint.assemble import Assembler
from moeopt.joint.knapsack import share_out
from moeopt.joint.layer_bound import layer_bound
from moeopt.joint.memory import request_classes
from moeopt.joint.prescribed_search import search_hosts
from moeopt.joint.prescribed_splits import hosted_bounds, splits_bounds
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
CLOSE = 2e-5
#: Nodes of the first search over a layer's hosts; each further one of it has MORE times as many.
_NODES, MORE = 20_000, 4
_NODES_LIMIT = 2_000_000
#: Later annealings go only this near to the replicas chosen.
_NEAR = 1


class PrescribedLayers:
    """Both sides of ``F_l(r)`` of every layer, for r = 0, …, ``most`` additional replicas.

    From above r is the most, from below the exact number; the last entry holds for more, too.
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
        self.slots = data.experts if data.slots is None else min(data.slots, data.experts)
        self.numbers, self.most = self._numbers()
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
        self.lower = np.stack([self._shared(l, self.alone[l][:, last]) for l in range(data.layers)])
        if self.step.resident:
            self.lower = np.maximum(self.lower, self._mean()[:, last])
        self.upper = np.full((data.layers, self.most + 1), np.inf)
        #: The best known hosts, and the tokens that each wave has on them, shape (W, hosts).
        self.hosts: dict[tuple[int, int], BoolArray] = {}
        self.splits: dict[tuple[int, int], FloatArray] = {}
        self.annealings = 0
        for l in range(data.layers):
            hosts = self._single_copies(l)
            self._keep(l, 0, hosts, *self._dispatch(l, hosts))
        self.nodes = np.full((data.layers, self.most + 1), _NODES)
        self.few = data.experts <= EXPERTS_LIMIT and data.gpus <= GPUS_LIMIT

    def _numbers(self) -> tuple[IntArray, int]:
        """Additional replicas of a layer that are planned, and up to which is counted."""
        most = min(2 * self.data.gpus, self.data.experts * (self.data.gpus - 1))
        return np.arange(most + 1), most

    def _slots(self, r: int) -> int:
        """Most experts of a layer with r additional replicas on a GPU."""
        return self.slots

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

    def _shared(self, l: int, alone: FloatArray) -> FloatArray:
        """Bound all waves of a layer; ``alone``, shape (W, most + 1): each of them."""
        tokens, cost = self.tokens[l], self.step.cost
        if self.step.resident:
            hosted = hosted_bounds(cost, tokens, self.data.gpus, self.most)
            alone = np.maximum(alone, hosted)
        return splits_bounds(cost, tokens, self.steps, alone)

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
        total, chosen = self._share_out(self.lower, self.replicas)
        return total * _SAFE, chosen

    def tighten(self, chosen: IntArray, ended: Callable[[], bool]) -> bool:
        """Search the layers whose two sides differ at these replicas; False if none is left."""
        rows = np.arange(len(chosen))
        short = self.upper[rows, chosen] / self.lower[rows, chosen] - 1.0
        searched = False
        for l in np.argsort(-short, kind="stable").tolist():
            r = int(chosen[l])
            # With as many replicas as are counted the bound holds for more: it stays each wave's.
            if short[l] <= CLOSE or r == self.most or self.nodes[l, r] > _NODES_LIMIT:
                continue
            if not self.few or ended():
                break
            self._search(l, r)
            searched = True
        return searched

    def _search(self, l: int, r: int) -> None:
        """Search the hosts of a layer with at most r additional replicas."""
        target = float(self.upper[l, r]) * (1.0 - 0.5 * CLOSE)
        least = self.alone[l, :, min(r, self.data.gpus - 1)]
        bound, masks, _ = hosts_tree(
            self.step.cost, self.tokens[l], self.steps, np.ascontiguousarray(least),
            self.data.gpus, r, self._slots(r), self.step.resident, target,
            int(self.nodes[l, r]),
        )  # fmt: skip
        self.nodes[l, r] *= MORE
        self.lower[l, : r + 1] = np.maximum(self.lower[l, : r + 1], bound * _SAFE_LAYER)
        if masks.all():
            hosts = (masks[:, None] >> np.arange(self.data.gpus)) & 1 > 0
            self._keep(l, r, hosts, *self._dispatch(l, hosts))

    # --- from above

    def anneal(self, moves: int, ended: Callable[[], bool]) -> None:
        """Look for hosts of every layer with as many replicas as the knapsack may choose.

        The first time with any number of replicas; then near the number chosen, in the layers
        whose two sides differ most first.
        """
        _, chosen = self.chosen(self.replicas)
        rows = np.arange(len(chosen))
        numbers = self.numbers[self.numbers <= max(0, self.replicas)]
        short = self.upper[rows, chosen] / self.lower[rows, chosen]
        for l in np.argsort(-short, kind="stable").tolist():
            near = numbers[np.abs(numbers - chosen[l]) <= _NEAR] if self.annealings else numbers
            for r in near.tolist():
                if ended():
                    return
                self._anneal(l, r, moves)
        self.annealings += 1

    def _anneal(self, l: int, r: int, moves: int) -> None:
        """Improve the hosts of a layer with at most r additional replicas."""
        least = np.ascontiguousarray(self.alone[l, :, -1])
        target = float(self.lower[l, : r + 1].min()) * (1.0 + 0.5 * CLOSE)
        total, hosts, shares = search_hosts(
            self.step.cost, self.tokens[l], self.steps, least, self.hosts[l, r],
            self._shares(l, r), r, self._slots(r), self.step.resident, target, moves,
            self.seed + l + self.data.layers * self.annealings,
        )  # fmt: skip
        self._keep(l, r, hosts, float(total), shares)

    def _single_copies(self, l: int) -> BoolArray:
        """One copy of each expert, dealt out by weight."""
        order = np.argsort(-(self.steps @ self.tokens[l]), kind="stable")
        hosts = np.zeros((self.data.experts, self.data.gpus), dtype=bool)
        hosts[order, np.arange(len(order)) % self.data.gpus] = True
        return hosts

    def _keep(self, l: int, r: int, hosts: BoolArray, total: float, shares: FloatArray) -> None:
        """Keep hosts for r and more additional replicas where they are better."""
        split = shares[:, hosts]
        for more in range(r, self.most + 1):
            if total < self.upper[l, more]:
                self.upper[l, more] = total
                self.hosts[l, more], self.splits[l, more] = hosts, split

    def _shares(self, l: int, r: int) -> FloatArray:
        """How the waves split their tokens over the best known hosts, shape (W, E, G)."""
        hosts = self.hosts[l, r]
        shares = np.zeros((len(self.used), *hosts.shape))
        shares[:, hosts] = self.splits[l, r]
        return shares

    def _dispatch(
        self, l: int, hosts: BoolArray, weights: FloatArray | None = None
    ) -> tuple[float, FloatArray]:
        """Value of hosts and the waves' splits over them, from weights, shape (W, E, G)."""
        total, shares = 0.0, np.zeros((len(self.used), *hosts.shape))
        for w, tokens in enumerate(self.tokens[l]):
            weight = hosts.astype(np.float64) if weights is None else weights[w]
            layer_us, shares[w] = dispatch_wave(
                self.step.cost, tokens, hosts, weight, self.step.resident
            )
            total += float(self.steps[w]) * float(layer_us)
        return total, shares

    def chosen(self, replicas: int) -> tuple[float, IntArray]:
        """Makespan of the best known layers with so many replicas, and each layer's."""
        return self._share_out(self.upper, replicas)

    def _share_out(self, times: FloatArray, replicas: int) -> tuple[float, IntArray]:
        """Choose the replicas of each layer: makespan, and these."""
        return share_out(times, replicas, self.attention)

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
        makespan_us, chosen = self.chosen(replicas)
        if makespan_us == np.inf:
            return None
        hosts = [self.hosts[l, int(r)] for l, r in enumerate(chosen)]
        shares = np.zeros((len(self.all_steps), len(hosts), *hosts[0].shape))
        for l, r in enumerate(chosen):
            shares[self.used, l] = self._shares(l, int(r))
        return self.assembler.fit(hosts, shares, self.counts, self.all_tokens, self.all_steps)
