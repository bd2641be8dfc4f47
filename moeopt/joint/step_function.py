"""The least time of a step as a function of its mean tokens and of the replicas in all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.joint.cost import Cost, cost_of, time_of
from moeopt.joint.knapsack import share_out
from moeopt.joint.layer_bound import Groups, layer_bound
from moeopt.joint.memory import request_classes
from moeopt.problem import FloatArray, IntArray, ProblemData


@dataclass(frozen=True)
class StepBound:
    """Bound of a step, attention and all layers.

    Attributes
    ----------
    step_us : float
        Lower bound of their sum.
    replicas : int array, shape (L,)
        Additional replicas of each layer that attain it.
    table : float array, shape (L, G)
        Bound of each layer with each number of additional replicas.
    groups : list of Groups or None
        One a layer.
    """

    step_us: float
    replicas: IntArray
    table: FloatArray
    groups: list[Groups | None]


class StepFunction:
    """Bounds steps of one problem.

    Notes
    -----
    *One wave, or resident replicas charged* (``mean=False``). For fixed hosts the layer time is
    convex in the tokens (the value of a convex program with the tokens on its right-hand side), so
    Jensen's inequality bounds the mean over several waves by the layer time of the mean tokens,
    and that by the partition bound or the threshold bound of the hosts.

    *Several waves, activated replicas charged* (``mean=True``). In every wave a component of the
    hosts' graph activates each of its experts that has tokens at least once; so its time is at
    least ``shared_time(experts, k, tokens)``, convex in the tokens: Jensen again, without the
    k − 1 replicas that splitting activates. Only experts that every class uses surely have tokens
    in every wave.

    *Attention* lasts as long as on the GPU with the largest cache T. GPU g with h_g experts caches
    at most ``min(T, M_g − s·h_g)``; these must add up to the cache of the wave. For equal GPUs the
    sum is largest for h_g as equal as possible: with more replicas than fit evenly, GPUs without
    one of them cache more. T is convex in the cache, so Jensen's inequality holds for it, too.
    """

    def __init__(self, data: ProblemData) -> None:
        self.data = data
        self.cost: Cost = cost_of(data.layer_time)
        self.resident = data.charged == "resident"
        usage = request_classes(data).usage
        self.always: IntArray = np.asarray((usage > 0).all(axis=0), dtype=np.int64)

    def charged(self, l: int, tokens: FloatArray, mean: bool) -> IntArray:
        """1 for each expert of layer l of which surely a replica is charged, shape (E,)."""
        if self.resident:
            return np.ones(self.data.experts, dtype=np.int64)
        return np.asarray(self.always[l] if mean else tokens > 0, dtype=np.int64)

    def bound(
        self,
        tokens: FloatArray,
        cache_mib: float,
        replicas: int,
        *,
        mean: bool,
        fixed: bool = True,
        quick: bool = False,
    ) -> StepBound:
        """Bound the mean step of waves.

        Parameters
        ----------
        tokens : float array, shape (L, E)
            Their mean, weighted by the waves' steps.
        cache_mib : float
            Mean KV cache of a wave, on all GPUs together.
        replicas : int
            Most additional replicas in all layers.
        mean : bool
            Whether there may be several waves.
        fixed : bool
            Whether the sum of the waves' steps is known. If not, the bound times the steps must not
            fall as they rise: then the fullest GPU is taken to hold the mean of the cache.
        quick : bool
            Leave out the enumeration of partitions.
        """
        data = self.data
        mean = mean and not self.resident
        table = np.empty((data.layers, data.gpus))
        groups: list[Groups | None] = []
        for l, w in enumerate(tokens):
            table[l], found = layer_bound(
                self.cost,
                w,
                data.gpus,
                charged=self.charged(l, w, mean),
                tree=not mean,
                quick=quick,
            )
            groups.append(found)
        if data.uniform_slots:
            total, chosen = self._uniform(table, tokens, replicas, mean)
            total += float(self.attention(cache_mib, np.zeros(1, dtype=np.int64), fixed)[0])
        else:
            used = np.arange(min(replicas, table.size) + 1)
            attention = self.attention(cache_mib, used, fixed)
            total, chosen = share_out(table, replicas, attention)
        return StepBound(total, chosen, table, groups)

    def attention(self, cache_mib: float, replicas: IntArray, fixed: bool) -> FloatArray:
        """Least attention time with so many additional replicas in all, elementwise."""
        data = self.data
        assert data.free_mib is not None
        level = cache_mib / data.gpus
        largest = np.full(len(replicas), level)
        if fixed and len(set(data.free_mib.tolist())) == 1 and not data.uniform_slots:
            each, more = np.divmod(data.layers * data.experts + replicas, data.gpus)
            beside = float(data.free_mib[0]) - data.expert_mib * (each + 1)
            others = (cache_mib - more * np.maximum(beside, 0.0)) / (data.gpus - more)
            largest = np.where(beside < level, np.maximum(others, level), level)
        return np.asarray(
            (data.attention_base_us + data.attention_us_per_mib * largest) * (1.0 - 2.0**-36)
        )

    def _uniform(
        self, table: FloatArray, tokens: FloatArray, replicas: int, mean: bool
    ) -> tuple[float, IntArray]:
        """Choose the number of slots, the same for every GPU and layer."""
        data = self.data
        most = (replicas // data.layers + data.experts) // data.gpus
        best, chosen = np.inf, 0
        for slots in range(-(-data.experts // data.gpus), most + 1):
            extra = slots * data.gpus - data.experts
            times = table[:, min(extra, data.gpus - 1)].copy()
            if extra == 0 or self.resident:
                times = np.maximum(times, self.full_gpus(tokens, slots, extra, mean))
            if times.sum() < best:
                best, chosen = float(times.sum()), extra
        return best, np.full(data.layers, chosen)

    def full_gpus(self, tokens: FloatArray, slots: int, extra: int, mean: bool) -> FloatArray:
        """Time of a GPU whose slots are all charged, and of the one with the heaviest expert."""
        gpus = self.data.gpus
        times = np.zeros(len(tokens))
        for l, w in enumerate(tokens):
            count = slots if self.resident else 0
            load = float(w.sum()) / gpus
            if extra == 0:  # nobody is split: the heaviest expert has slots − 1 whole neighbours
                order = np.sort(w)
                load = max(load, float(order[-1] + order[: slots - 1].sum()))
                lacking = int((self.charged(l, w, mean) == 0).sum())
                count = slots if self.resident else max(0, slots - lacking)
            times[l] = time_of(self.cost, count, load) * (1.0 - 2.0**-36)
        return times
