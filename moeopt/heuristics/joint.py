"""``joint`` by construction: waves by dynamic programming, experts by descent, replicas by gain.

1. Requests are sorted by output length; waves are contiguous pieces of that order (two waves of
   mixed lengths can exchange requests until they are), found by dynamic programming over an
   estimate of the step time, for several budgets of KV memory a wave.
2. Requests of a wave go to the GPU with the most memory left.
3. Single copies of the experts: the descent of ``placement`` with the waves as scenarios.
4. Memory that the fullest wave leaves is filled with replicas: from the busiest GPU of a layer to
   GPUs with room, the largest gain of the makespan first.

The plan carries its dispatch. What it costs is for the checker to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from moeopt import dispatch
from moeopt.heuristics.capacity import room, slots
from moeopt.heuristics.placement import BoolArray, place_hosts
from moeopt.problem import FloatArray, IntArray, ProblemData, RequestClasses, Scenarios
from moeopt.solution import Solution
from moeopt.step_bound import kv_memory_mib

#: Pieces into which the requests are cut for the dynamic programme.
_PIECES = 240
#: Shares of the KV memory that a wave may use, tried one after the other.
_BUDGETS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12)
_LEAST_GAIN = 1e-12


@dataclass(frozen=True)
class Chunk:
    """Requests of one class that stay together in the dynamic programme."""

    request_class: int
    count: int


@dataclass
class Plan:
    """A plan under construction, with its makespan as far as it is known."""

    hosts: BoolArray
    requests: IntArray  # (C, W, G)
    dispatch: FloatArray  # (W, L, E, G)
    makespan_us: float


def plan(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    on_plan: Callable[[Solution], None] = lambda solution: None,
) -> Solution | None:
    """Return the best plan found, or None if none fits (which proves nothing).

    Parameters
    ----------
    on_plan : callable
        Called with every plan that is better than those before.
    """
    deadline = time.monotonic() + time_limit_s
    best: Plan | None = None
    best_solution: Solution | None = None
    seen: set[bytes] = set()
    for waves in _wave_plans(data):
        if waves.tobytes() in seen:
            continue
        seen.add(waves.tobytes())
        if best is not None and (time.monotonic() > deadline or stop()):
            break
        made = _complete(data, waves, seed, deadline, stop)
        if made is not None and (best is None or made.makespan_us < best.makespan_us):
            best = made
            best_solution = Solution.from_arrays(
                data, made.hosts, requests=made.requests, dispatch=made.dispatch
            )
            on_plan(best_solution)
    return best_solution


# --- waves ------------------------------------------------------------------------------------


def _requests(data: ProblemData) -> RequestClasses:
    assert data.requests is not None
    return data.requests


def _chunks(data: ProblemData) -> list[Chunk]:
    requests = _requests(data)
    size = max(1, math.ceil(int(requests.count.sum()) / _PIECES))
    order = sorted(range(len(requests.names)), key=lambda c: (-int(requests.output_tokens[c]), c))
    return [
        Chunk(c, min(size, int(requests.count[c]) - first))
        for c in order
        for first in range(0, int(requests.count[c]), size)
    ]


def _wave_plans(data: ProblemData) -> Iterator[IntArray]:
    """Yield numbers of requests of each class and wave, shape (C, W), best estimate first."""
    chunks = _chunks(data)
    memory = kv_memory_mib(data)
    plans = []
    for budget in _BUDGETS:
        found = _cut(data, chunks, budget * memory)
        if found is not None:
            plans.append(found)
    for _, counts in sorted(plans, key=lambda item: item[0]):
        yield counts


def _cut(
    data: ProblemData, chunks: list[Chunk], kv_limit_mib: float
) -> tuple[float, IntArray] | None:
    """Cut the sorted requests into at most ``data.waves`` waves of least estimated makespan."""
    requests = _requests(data)
    count = np.array([chunk.count for chunk in chunks])
    kv = np.array([requests.kv_mib[chunk.request_class] * chunk.count for chunk in chunks])
    longest = np.array([int(requests.output_tokens[chunk.request_class]) for chunk in chunks])
    ends_n, ends_kv = np.cumsum(count), np.cumsum(kv)
    total = len(chunks)
    steps = sorted(data.wave_steps, reverse=True) if data.wave_steps is not None else None
    cost = np.full((data.waves + 1, total + 1), np.inf)
    cost[0, 0] = 0.0
    came = np.zeros((data.waves + 1, total + 1), dtype=np.int64)
    for w in range(data.waves):
        cost[w + 1] = cost[w]  # the wave stays empty
        came[w + 1] = np.arange(total + 1)
        for first in range(total):
            if not np.isfinite(cost[w, first]):
                continue
            run = int(longest[first]) if steps is None else steps[w]
            if run < longest[first]:
                continue
            n = ends_n[first:] - (ends_n[first - 1] if first else 0)
            used = ends_kv[first:] - (ends_kv[first - 1] if first else 0.0)
            value = cost[w, first] + run * _step_estimate(data, n, used)
            value[used > kv_limit_mib] = np.inf
            better = np.flatnonzero(value < cost[w + 1, first + 1 :])
            cost[w + 1, first + 1 + better] = value[better]
            came[w + 1, first + 1 + better] = first
    if not np.isfinite(cost[data.waves, total]):
        return None
    counts = np.zeros((len(requests.names), data.waves), dtype=np.int64)
    end = total
    wave_of_rank = np.arange(data.waves)
    if data.wave_steps is not None:
        wave_of_rank = np.argsort(-np.array(data.wave_steps), kind="stable")
    for w in range(data.waves, 0, -1):
        first = int(came[w, end])
        for chunk in chunks[first:end]:
            counts[chunk.request_class, wave_of_rank[w - 1]] += chunk.count
        end = first
    return float(cost[data.waves, total]), counts


def _step_estimate(data: ProblemData, n: FloatArray | IntArray, kv_mib: FloatArray) -> FloatArray:
    """Step time with balanced GPUs, one copy of each expert active."""
    layer = data.layer_time.of(math.ceil(data.experts / data.gpus), data.top_k * n / data.gpus)
    attention = data.attention_base_us + data.attention_us_per_mib * kv_mib / data.gpus
    return np.asarray(attention + data.layers * layer)


# --- one plan for given waves -----------------------------------------------------------------


def _complete(
    data: ProblemData, counts: IntArray, seed: int, deadline: float, stop: Callable[[], bool]
) -> Plan | None:
    """Place experts, requests and replicas for given waves; None if they do not fit."""
    assert data.free_mib is not None
    requests = _requests(data)
    steps = _steps(data, counts)
    tokens = np.einsum("cw,cle->wle", counts.astype(np.float64), requests.usage)
    hosts = _single_copies(data, tokens, steps, seed, deadline, stop)
    if hosts is None:
        return None
    left = data.free_mib - data.expert_mib * hosts.sum(axis=(0, 1))
    z = np.stack(
        [_share_out(requests, counts[:, w], left, seed) for w in range(data.waves)], axis=1
    )
    kv = np.einsum("c,cwg->wg", requests.kv_mib, z)
    if (kv > left).any():
        return None
    spare = np.floor((left - kv.max(axis=0)) / data.expert_mib).astype(np.int64)
    hosts, served, layer_us = _replicate(data, hosts, tokens, steps, spare, deadline, stop)
    attention = data.attention_base_us + data.attention_us_per_mib * kv.max(axis=1)
    return Plan(hosts, z, served, float(steps @ (attention + layer_us.sum(axis=1))))


def _steps(data: ProblemData, counts: IntArray) -> IntArray:
    """Steps of each wave, 0 where it is empty, shape (W,)."""
    present = counts > 0
    if data.wave_steps is not None:
        return np.where(present.any(axis=0), np.array(data.wave_steps), 0)
    return np.asarray((_requests(data).output_tokens[:, None] * present).max(axis=0))


def _single_copies(
    data: ProblemData,
    tokens: FloatArray,
    steps: IntArray,
    seed: int,
    deadline: float,
    stop: Callable[[], bool],
) -> BoolArray | None:
    """Place one copy of every expert, the waves taken as scenarios weighted by their steps."""
    used = np.flatnonzero(steps)
    weight = steps[used] / steps[used].sum()
    scenarios = []
    for l in range(data.layers):
        rows = [np.flatnonzero(tokens[w, l]) for w in used]
        scenarios.append(
            Scenarios(
                np.cumsum([0, *map(len, rows)]),
                np.concatenate(rows),
                np.concatenate([tokens[w, l, row] for w, row in zip(used, rows, strict=True)]),
                weight,
            )
        )
    # Equal shares leave the same KV memory on every GPU.
    even = math.ceil(data.experts / data.gpus) if len(set(data.gpu_kind.tolist())) == 1 else None
    most = slots(data) if even is None else min(slots(data), max(even, 1))
    waves = replace(
        data, scenarios=tuple(scenarios), load=np.einsum("w,wle->le", weight, tokens[used])
    )
    remaining = max(1.0, 0.3 * (deadline - time.monotonic()))
    for limit in dict.fromkeys((most, data.slots)):
        hosts = place_hosts(
            replace(waves, slots=limit), seed=seed, time_limit_s=remaining, stop=stop
        )
        if hosts is not None:
            return hosts
    return None


def _share_out(
    requests: RequestClasses, counts: IntArray, left_mib: FloatArray, seed: int
) -> IntArray:
    """Requests of one wave on GPUs, shape (C, G): largest cache first, to the most memory left."""
    left = left_mib.copy()
    z = np.zeros((len(counts), len(left)), dtype=np.int64)
    for c in np.argsort(-requests.kv_mib, kind="stable").tolist():
        for _ in range(int(counts[c])):
            g = int(left.argmax())
            z[c, g] += 1
            left[g] -= requests.kv_mib[c]
    return z


# --- replicas ---------------------------------------------------------------------------------


class _Layer:
    """One layer's hosts, with the dispatch and time of every wave."""

    def __init__(self, data: ProblemData, hosts: BoolArray, tokens: FloatArray, steps: IntArray):
        self.data, self.hosts, self.tokens, self.steps = data, hosts, tokens, steps
        self.results = self.evaluate(hosts)

    def evaluate(self, hosts: BoolArray) -> list[dispatch.DispatchResult]:
        gpus_of = [tuple(np.flatnonzero(row).tolist()) for row in hosts]
        return [
            dispatch.rule_time(
                self.data.layer_time, gpus_of, tokens, whole=False, gpus=self.data.gpus
            )
            for tokens in self.tokens
        ]

    def cost(self, results: list[dispatch.DispatchResult]) -> float:
        return float(sum(d * r.time for d, r in zip(self.steps, results, strict=True)))

    def best_copy(self, spare: IntArray) -> tuple[float, int, int]:
        """Best replica for the busiest GPU of the costliest wave: (gain, expert, GPU)."""
        w = int(np.argmax(self.steps * [r.time for r in self.results]))
        served = self.served(w)
        busy = self.data.layer_time.of((served > 0).sum(axis=0), served.sum(axis=0))
        from_gpu = int(busy.argmax())
        heavy = np.argsort(-served[:, from_gpu], kind="stable")[:2].tolist()
        open_gpus = [
            g
            for g in np.argsort(busy, kind="stable").tolist()
            if g != from_gpu and spare[g] > 0 and self.hosts[:, g].sum() < slots(self.data)
        ][:2]
        now = self.cost(self.results)
        best = (0.0, -1, -1)
        for e in heavy:
            for g in open_gpus:
                if self.hosts[e, g] or served[e, from_gpu] <= 0:
                    continue
                self.hosts[e, g] = True
                gain = now - self.cost(self.evaluate(self.hosts))
                self.hosts[e, g] = False
                if gain > best[0]:
                    best = (gain, e, g)
        return best

    def served(self, w: int) -> FloatArray:
        """Tokens of each replica in wave w, shape (E, G)."""
        served = np.zeros((self.data.experts, self.data.gpus))
        for e, g, tokens in self.results[w].assignment:
            served[e, g] += tokens
        return served


def _replicate(
    data: ProblemData,
    hosts: BoolArray,
    tokens: FloatArray,
    steps: IntArray,
    spare: IntArray,
    deadline: float,
    stop: Callable[[], bool],
) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Fill the spare room. Return hosts, dispatch (W, L, E, G) and layer times (W, L)."""
    layers = [_Layer(data, hosts[l].copy(), tokens[:, l], steps) for l in range(data.layers)]
    spare = np.minimum(spare, room(data) - hosts.sum(axis=(0, 1)))
    best = {l: layer.best_copy(spare) for l, layer in enumerate(layers)} if spare.any() else {}
    while best and time.monotonic() < deadline and not stop():
        l = max(best, key=lambda l: best[l][0])
        gain, e, g = best[l]
        if gain <= _LEAST_GAIN:
            break
        layers[l].hosts[e, g] = True
        layers[l].results = layers[l].evaluate(layers[l].hosts)
        spare[g] -= 1
        again = [o for o in best if o == l or (spare[g] == 0 and best[o][2] == g)]
        for other in again:
            best[other] = layers[other].best_copy(spare)
    full = np.stack([layer.hosts for layer in layers])
    served = np.stack([[layer.served(w) for layer in layers] for w in range(data.waves)])
    times = np.array([[layer.results[w].time for layer in layers] for w in range(data.waves)])
    return full, served, times
