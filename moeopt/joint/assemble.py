"""A plan for given waves: replicas by the knapsack, hosts layer by layer, labels, requests.

The layers are planned for the mean step of the waves, weighted by their lengths; each wave then
gets a dispatch of its own. If the requests do not fit beside the replicas, replicas are given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moeopt.joint.layer_plan import LayerPlan, plan_layer
from moeopt.joint.memory import memory_of, request_classes
from moeopt.joint.repair import label_gpus, place_requests
from moeopt.joint.step_function import StepBound, StepFunction
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.joint.wave_hosts import BoolArray, add_hosts
from moeopt.joint.waves import wave_steps
from moeopt.problem import FloatArray, IntArray, ProblemData
from moeopt.solution import Solution

#: Attempts after the last improvement of a layer's search.
_KICKS = 80
#: A layer is planned with more replicas, where some are left, if it is this far above its bound.
_WORTH_MORE = 2e-4

#: A plan this close to its bound is taken; else plans with fewer replicas are tried, too.
_CLOSE = 2e-4
_TRIES = 5

#: Shares of the memory left that are filled with replicas for single waves, until requests fit.
_FILLED = (1.0, 0.97, 0.9, 0.75, 0.5)


@dataclass
class Assembler:
    """Plans of one problem. Layer plans are kept: giving up replicas plans few layers anew."""

    data: ProblemData
    seed: int = 0
    kicks: int = _KICKS
    step: StepFunction = field(init=False)

    def __post_init__(self) -> None:
        self.step = StepFunction(self.data)
        self.memory = memory_of(self.data)

    def plan(
        self,
        counts: IntArray,
        *,
        deadline: float = np.inf,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[float, Solution] | None:
        """Plan waves of these requests, shape (C, W); None if they do not fit.

        Parameters
        ----------
        deadline : float
            Of ``time.monotonic``; no replicas are given up after it.
        stop : callable
            Whether no further layer is to be planned: the plan may be None for that reason alone.

        Returns
        -------
        makespan : float
            As far as this construction knows it; the checker decides.
        solution : Solution
        """
        data, requests = self.data, request_classes(self.data)
        if counts.shape[1] > data.waves:
            return None
        steps = wave_steps(data, counts)
        caches = (counts * self.memory.kv[:, None]).sum(axis=0)
        tokens = np.einsum("cw,cle->wle", counts.astype(np.float64), requests.usage)
        weight = steps / steps.sum()
        mean = np.einsum("w,wle->le", weight, tokens)
        cache_mib = float(weight @ (counts * requests.kv_mib[:, None]).sum(axis=0))
        replicas = self.memory.additional(int(caches.max()))
        given_up = 1
        best: tuple[float, Solution] | None = None
        tried = 0
        fewer = data.gpus * data.layers if data.uniform_slots else 1
        plans: dict[tuple[int, int], LayerPlan | None] = {}
        while replicas >= 0:
            bound = self.step.bound(mean, cache_mib, replicas, mean=False)
            layers = self._layers(mean, bound, replicas, plans, stop)
            if layers is not None:
                slots = (data.experts + int(bound.replicas[0])) // data.gpus
                hosts = [self._complete(plan, slots) for plan in layers]
                shares = np.stack([np.stack([plan.share for plan in layers])] * len(steps))
                found = self.fit(hosts, shares, counts, tokens, steps)
                if found is not None:
                    found = self._fit_own(found, hosts, shares, counts, tokens, steps, deadline)
                    best = found if best is None else min(best, found, key=lambda plan: plan[0])
                    tried += 1
                    least = float(steps.sum()) * bound.step_us
                    if best[0] <= least * (1 + _CLOSE) or tried == _TRIES:
                        return best
                    # Whole requests may sit better beside fewer experts.
                    replicas = min(replicas, int(bound.replicas.sum())) - fewer
                    continue
            if best is not None:
                return best
            if time.monotonic() > deadline or stop():
                return None
            replicas -= max(fewer, given_up)
            given_up *= 2
        return best

    # --- layers

    def _layers(
        self,
        mean: FloatArray,
        bound: StepBound,
        replicas: int,
        plans: dict[tuple[int, int], LayerPlan | None],
        stop: Callable[[], bool],
    ) -> list[LayerPlan] | None:
        """Plan all layers with at most so many additional replicas in all."""
        slots = self._slots(int(bound.replicas[0])) if len(bound.replicas) else 0
        most = self.data.gpus - 1

        def layer(l: int, extra: int) -> LayerPlan | None:
            if (l, extra) not in plans:
                if stop():
                    return None
                plans[l, extra] = plan_layer(
                    self.step.cost,
                    mean[l],
                    self.data.gpus,
                    extra,
                    charged=self.step.charged(l, mean[l], False),
                    bound=float(bound.table[l, extra]),
                    groups=bound.groups[l],
                    slots=slots,
                    kicks=self.kicks,
                    seed=self.seed + l,
                )
            return plans[l, extra]

        done = []
        for l, r in enumerate(bound.replicas):
            plan = layer(l, min(int(r), most))
            if plan is None:
                return None
            done.append(plan)
        if self.data.uniform_slots:
            return done
        left = replicas - int(bound.replicas.sum())
        own = [float(bound.table[l, min(int(r), most)]) for l, r in enumerate(bound.replicas)]
        above = [plan.time / max(b, 1e-300) - 1 for plan, b in zip(done, own, strict=True)]
        for l in sorted(range(len(done)), key=lambda l: -above[l]):
            if above[l] < _WORTH_MORE:
                break
            first = int(bound.replicas[l])
            for more in (1, 2, 4, 8, 16, 32):
                other = layer(l, first + more) if more <= left and first + more <= most else None
                if other is not None and other.time < done[l].time * (1 - 1e-6):
                    left -= max(0, other.extra - first)
                    done[l] = other
                    break
        return done

    def _slots(self, extra: int) -> int:
        """Most experts of one layer on a GPU."""
        data = self.data
        limit = data.experts if data.slots is None else min(data.slots, data.experts)
        if data.uniform_slots:
            limit = min(limit, (data.experts + extra) // data.gpus)
        return limit

    # --- GPUs and requests

    def fit(
        self,
        hosts: list[BoolArray],
        shares: FloatArray,
        counts: IntArray,
        tokens: FloatArray,
        steps: IntArray,
    ) -> tuple[float, Solution] | None:
        """Label the GPUs, place the requests; None if these do not fit.

        ``shares``, shape (W, L, E, G): how the waves' tokens are split, as proportions.
        """
        data = self.data
        assert data.free_mib is not None
        labels = label_gpus(hosts, data.free_mib, data.expert_mib)
        x = np.stack([_relabelled(h, label) for h, label in zip(hosts, labels, strict=True)])
        left = self.memory.free - self.memory.expert * x.sum(axis=(0, 1))
        z = np.zeros((*counts.shape, data.gpus), dtype=np.int64)
        for w in range(counts.shape[1]):
            placed = place_requests(counts[:, w], left, self.memory)
            if placed is None:
                return None
            z[:, w] = placed
        caches = np.einsum("c,cwg->wg", request_classes(data).kv_mib, z).max(axis=1)
        step_us = data.attention_base_us + data.attention_us_per_mib * caches
        dispatch = np.zeros((counts.shape[1], *x.shape))
        for l, label in enumerate(labels):
            for w in np.flatnonzero(steps).tolist():
                weight = _relabelled(shares[w, l], label)
                layer_us, dispatch[w, l] = dispatch_wave(
                    self.step.cost, tokens[w, l], x[l], weight, self.step.resident
                )
                step_us[w] += layer_us
        # With resident replicas charged, the split is a flow that the checker finds itself.
        stated = None if self.step.resident else dispatch
        solution = Solution.from_arrays(data, x, requests=z, dispatch=stated)
        return float(steps @ step_us), solution

    def _fit_own(
        self,
        found: tuple[float, Solution],
        hosts: list[BoolArray],
        shares: FloatArray,
        counts: IntArray,
        tokens: FloatArray,
        steps: IntArray,
        deadline: float,
    ) -> tuple[float, Solution]:
        """Fill the memory left with replicas that single waves gain by; the better plan."""
        data = self.data
        if np.count_nonzero(steps) < 2 or self.step.resident or data.uniform_slots:
            return found
        caches = (counts * self.memory.kv[:, None]).sum(axis=0)
        free = self.memory.additional(int(caches.max())) + self.memory.copies
        free -= int(sum(layer.sum() for layer in hosts))
        bounds = {
            w: self.step.bound(tokens[w], 0.0, self.memory.copies * data.gpus, mean=False)
            for w in np.flatnonzero(steps).tolist()
        }
        caches_mib = request_classes(data).kv_mib @ counts
        least = sum(
            float(steps[w]) * (bound.step_us + float(data.attention_us_per_mib * cache / data.gpus))
            for (w, bound), cache in zip(bounds.items(), caches_mib[list(bounds)], strict=True)
        )
        if found[0] <= least * (1 + _CLOSE):
            return found
        most = data.gpus - 1
        plans: dict[tuple[int, int], LayerPlan | None] = {}

        def own(w: int, l: int) -> LayerPlan | None:
            if (w, l) not in plans and time.monotonic() > deadline:
                return None
            if (w, l) not in plans:
                plans[w, l] = plan_layer(
                    self.step.cost,
                    tokens[w, l],
                    data.gpus,
                    most,
                    charged=self.step.charged(l, tokens[w, l], False),
                    bound=float(bounds[w].table[l, most]),
                    groups=bounds[w].groups[l],
                    slots=self._slots(most),
                    kicks=self.kicks,
                    seed=self.seed + l,
                )
            return plans[w, l]

        for share in _FILLED:
            more = add_hosts(
                self.step.cost, tokens, steps, hosts, shares, own,
                replicas=int(share * free), slots=self._slots(most),
            )  # fmt: skip
            filled = self.fit(*more, counts, tokens, steps)
            if filled is not None:
                return min(found, filled, key=lambda plan: plan[0])
        return found

    def _complete(self, plan: LayerPlan, slots: int) -> BoolArray:
        """Host what the search left out: experts without tokens; with equal slots, all slots."""
        hosts: BoolArray = plan.hosts.copy()
        count = hosts.sum(axis=0)
        for e in np.flatnonzero(~hosts.any(axis=1)):
            g = int(count.argmin())
            hosts[e, g] = True
            count[g] += 1
        if self.data.uniform_slots:
            for g in range(self.data.gpus):
                missing = slots - int(count[g])
                hosts[np.flatnonzero(~hosts[:, g])[:missing], g] = True
        return hosts


def _relabelled(table: np.ndarray, label: IntArray) -> np.ndarray:
    """Columns of a plan's GPUs as columns of the GPUs that take their place."""
    moved: np.ndarray = np.empty_like(table)
    moved[:, label] = table
    return moved
