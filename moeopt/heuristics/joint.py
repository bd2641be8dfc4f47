"""``joint`` by construction: waves, then experts and replicas layer by layer.

1. Waves: those where the bound over lengths is attained, and those of a dynamic programme over an
   estimate of the step time (:mod:`moeopt.joint.waves`).
2. For each of them a plan by layers: replicas by the knapsack, hosts by the bounds' groups and
   local search (:mod:`moeopt.joint.assemble`).
3. Where several waves share one placement and activated replicas are charged, time that is left
   goes to plans for the waves one by one, the most promising first: single copies by the descent of
   ``placement`` with the waves as scenarios; then memory that the fullest wave leaves is filled
   with replicas, from the busiest GPU of a layer to GPUs with room, the largest gain first.

Where the waves' requests are prescribed, :mod:`moeopt.joint.prescribed` plans them.

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
from moeopt.joint.assemble import Assembler
from moeopt.joint.memory import request_classes
from moeopt.joint.prescribed import is_prescribed, solve_prescribed
from moeopt.joint.wave_ranges import best_requests
from moeopt.joint.waves import wave_plans, wave_steps, waves_of_lengths
from moeopt.problem import FloatArray, IntArray, ProblemData, RequestClasses, Scenarios
from moeopt.solution import Solution
from moeopt.step_bound import kv_memory_mib

_LEAST_GAIN = 1e-12

#: Shares of the memory beside single copies that a wave's caches may fill, tried one by one.
_MEMORY_SHARES = (1.0, 0.999, 0.99, 0.97, 0.94)
#: Share of the time left that one programme of the waves may take.
_PROGRAM_SHARE = 0.2


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
    lengths: tuple[int, ...] | None = None,
    seed: int = 0,
    time_limit_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    on_plan: Callable[[Solution], None] = lambda solution: None,
) -> Solution | None:
    """Return the best plan found, or None if none fits (which proves nothing).

    Parameters
    ----------
    lengths : tuple of int, optional
        Decode steps of each wave that are worth a trial: those of
        :func:`moeopt.joint.lengths.lengths_bound`.
    on_plan : callable
        Called with every plan that is better than those before.
    """
    if is_prescribed(data):
        return solve_prescribed(
            data, seed=seed, time_limit_s=time_limit_s, stop=stop, on_plan=on_plan
        ).solution
    deadline = time.monotonic() + time_limit_s
    best_us = math.inf
    best: Solution | None = None
    assembler = Assembler(data, seed)
    ranked: list[tuple[float, int, IntArray]] = []
    for rank, waves in enumerate(_waves(data, lengths, deadline, stop)):
        if best is not None and (time.monotonic() > deadline or stop()):
            return best
        # A first plan is made to the end, whoever asks to stop.
        made = assembler.plan(waves, deadline=deadline, stop=stop if best is not None else _never)
        ranked.append((math.inf if made is None else made[0], rank, waves))
        if made is not None and made[0] < best_us:
            best_us, best = made
            on_plan(best)
    if data.charged == "resident" or data.uniform_slots:
        return best
    for _, _, waves in sorted(ranked, key=lambda item: item[:2]):
        if best is not None and (
            time.monotonic() > deadline or stop() or waves.any(axis=0).sum() == 1
        ):
            break
        found = _complete(data, waves, seed, deadline, stop)
        if found is not None and found.makespan_us < best_us:
            best_us = found.makespan_us
            best = Solution.from_arrays(
                data, found.hosts, requests=found.requests, dispatch=found.dispatch
            )
            on_plan(best)
    return best


def _never() -> bool:
    return False


def _waves(
    data: ProblemData,
    lengths: tuple[int, ...] | None,
    deadline: float,
    stop: Callable[[], bool],
) -> Iterator[IntArray]:
    """Yield different numbers of requests of each class and wave, shape (C, W)."""
    if data.wave_requests is not None:
        yield data.wave_requests
        return
    seen: set[bytes] = set()
    sources: list[Iterator[IntArray]] = [wave_plans(data)]
    if lengths:
        filled, programmed = (
            waves_of_lengths(data, lengths),
            _programmed(data, lengths, deadline, stop),
        )
        # Waves of equal length are best when they are equal; the programme's need not be.
        equal = len({d for d in lengths if d}) == 1
        sources = [*((filled, programmed) if equal else (programmed, filled)), *sources]
        if equal and data.wave_steps is None:
            sources[1:1] = _other_numbers(data, lengths)
    for plans in sources:
        for waves in plans:
            if waves.tobytes() not in seen:
                seen.add(waves.tobytes())
                yield waves


def _other_numbers(data: ProblemData, lengths: tuple[int, ...]) -> list[Iterator[IntArray]]:
    """Waves of the one length that there is: one fewer or more of them, then two, and so on."""
    used, length = sum(d > 0 for d in lengths), max(lengths)
    numbers = sorted(set(range(1, len(lengths) + 1)) - {used}, key=lambda n: (abs(n - used), n))
    return [waves_of_lengths(data, (length,) * n + (0,) * (len(lengths) - n)) for n in numbers]


def _programmed(
    data: ProblemData, lengths: tuple[int, ...], deadline: float, stop: Callable[[], bool]
) -> Iterator[IntArray]:
    """Yield requests of waves from the bound's programme, with more and more memory left free."""
    if sum(d > 0 for d in lengths) < 2:
        return
    memory_mib, fullest_mib = kv_memory_mib(data), math.inf
    for memory_share in _MEMORY_SHARES:
        if fullest_mib <= memory_share * memory_mib:
            continue  # the same waves again
        begin = time.monotonic()
        until = min(deadline, begin + _PROGRAM_SHARE * (deadline - begin))
        found = best_requests(data, lengths, memory_share=memory_share, deadline=until, stop=stop)
        if found is not None:
            fullest_mib = float((request_classes(data).kv_mib @ found).max())
            yield found


# --- one plan for given waves -----------------------------------------------------------------


def _complete(
    data: ProblemData, counts: IntArray, seed: int, deadline: float, stop: Callable[[], bool]
) -> Plan | None:
    """Place experts, requests and replicas for given waves; None if they do not fit."""
    assert data.free_mib is not None
    requests = request_classes(data)
    steps = wave_steps(data, counts)
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
