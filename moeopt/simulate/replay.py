"""Continuous batching of a workload on a plan, step by step.

A request is admitted, in order, as soon as its cache at its **final** length fits a GPU (so no
request is ever evicted), to that with the least KV cache; it decodes one token in every step and
leaves with its last one. The next request waits until it fits: nobody overtakes. A step takes

    attention (the fullest GPU's cache at its present length) + Σ_l max_g f(A_g, N_g)

with the expert choices of the very tokens that are decoded. Prefill and communication take no time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from moeopt.errors import InputError
from moeopt.problem import FloatArray, IntArray
from moeopt.simulate.served import ServedPlan
from moeopt.simulate.workload import Workload


@dataclass(frozen=True)
class Replay:
    """What was measured, after the warm-up.

    Attributes
    ----------
    step_us, layers_us, mean_gpu_us : float arrays, shape (S,)
        Time of each step; its part in MoE layers; what that would be if every GPU ended at the
        mean of all GPUs.
    batch : int array, shape (S,)
        Requests decoded in each step.
    kv_reserved, kv_used : float arrays, shape (S,)
        Share of the KV memory of all GPUs that is reserved, and used, in each step; NaN where
        there is no limit.
    request_tpot_us, request_wait_us : float arrays, shape (Q,)
        Of each request that ended: time per output token from its admission on; wait before it.
    elapsed_us : float
        From the end of the warm-up, idle time included.
    refused : int
        Requests whose cache fits no GPU at all, each time one was met.
    """

    step_us: FloatArray
    layers_us: FloatArray
    mean_gpu_us: FloatArray
    batch: IntArray
    kv_reserved: FloatArray
    kv_used: FloatArray
    request_tpot_us: FloatArray
    request_wait_us: FloatArray
    elapsed_us: float
    refused: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return 1e6 * float(self.batch.sum()) / self.elapsed_us

    @property
    def gpu_imbalance(self) -> float:
        """``Σ max_g f / Σ mean_g f`` over all layers and steps."""
        return float(self.layers_us.sum() / self.mean_gpu_us.sum())


class _Active:
    """The requests that are decoding, in arrays that grow."""

    def __init__(self) -> None:
        self.request = np.zeros(0, dtype=np.int64)
        self.gpu = np.zeros(0, dtype=np.int64)
        self.place = np.zeros(0, dtype=np.int64)  # tokens decoded so far
        self.begun_us = np.zeros(0)
        self.came_us = np.zeros(0)

    def add(self, request: int, gpu: int, came_us: float, now_us: float) -> None:
        self.request = np.append(self.request, request)
        self.gpu = np.append(self.gpu, gpu)
        self.place = np.append(self.place, 0)
        self.came_us = np.append(self.came_us, came_us)
        self.begun_us = np.append(self.begun_us, now_us)

    def keep(self, these: np.ndarray) -> None:
        for name in ("request", "gpu", "place", "came_us", "begun_us"):
            setattr(self, name, getattr(self, name)[these])


def replay(
    plan: ServedPlan,
    work: Workload,
    *,
    rule: str | None = None,
    steps: int = 2000,
    warmup_steps: int = 300,
    batch_limit: int | None = None,
) -> Replay:
    """Replay a workload on a plan.

    Parameters
    ----------
    plan : ServedPlan
    work : Workload
        Without arrivals it is repeated for ever.
    rule : str, optional
        Dispatch rule (:data:`moeopt.dispatch_kernel.RULES`); default: the plan's.
    steps, warmup_steps : int
        Decode steps measured, and before them not; fewer if the workload ends.
    batch_limit : int, optional
        Most requests decoded at once; needed where the plan has no memory limit.

    Raises
    ------
    InputError
        The trace does not fit the plan, nothing limits the batch, or nothing can be decoded.
    """
    rule = rule or plan.default_rule
    _require_fit(plan, work, batch_limit)
    most = batch_limit or len(work) + 1_000_000
    total_mib = float(plan.kv_mib.sum())
    left_mib = plan.kv_mib.copy()
    held_mib = np.zeros(plan.gpus)  # beside it: what is left may be infinite
    largest_mib = float(plan.kv_mib.max())
    active = _Active()
    waiting: deque[tuple[int, float]] = deque()
    came = 0  # requests that have arrived
    now_us, measured_from_us, refused = 0.0, 0.0, 0
    rows: list[tuple[float, float, float, int, float, float]] = []
    ended: list[tuple[float, float]] = []
    for turn in range(warmup_steps + steps):
        if turn == warmup_steps:
            measured_from_us = now_us
        came, idle_us = _arrive(work, waiting, came, now_us, len(active.request) > 0)
        now_us += idle_us
        while len(active.request) < most:
            if not waiting and work.arrival_s is None:
                waiting.append((came % len(work), now_us))
                came += 1
            if not waiting:
                break
            next_one, came_us = waiting[0]
            # Attention is as slow as its fullest GPU: level the cache, not what is left of memory.
            fits = work.kv_mib[next_one] <= left_mib
            g = int(np.where(fits, held_mib, np.inf).argmin())
            if not fits[g]:
                if work.kv_mib[next_one] <= largest_mib:
                    break
                refused += 1  # it would wait for ever
                if work.arrival_s is None and refused >= 2 * len(work):
                    raise InputError(f"{plan.name}: no request's KV cache fits a GPU")
                waiting.popleft()
                continue
            waiting.popleft()
            left_mib[g] -= work.kv_mib[next_one]
            held_mib[g] += work.kv_mib[next_one]
            active.add(next_one, g, came_us, now_us)
        if len(active.request) == 0:
            if work.arrival_s is not None and came < len(work):
                continue  # all that had come were refused
            break
        r = active.request
        tokens = work.begin[r] + (work.phase[r] + active.place) % work.length[r]
        layers_us, mean_us = plan.step(work.trace.ids, tokens, rule, turn)
        active.place += 1
        held = (work.prompt_tokens[r] + active.place) * work.kv_mib_per_token
        used_mib = np.bincount(active.gpu, held, plan.gpus)
        step_us = plan.attention_us(used_mib) + layers_us
        now_us += step_us
        done = active.place >= work.output_tokens[r]
        if turn >= warmup_steps:
            reserved = 1.0 - float(left_mib.sum()) / total_mib
            rows.append(
                (step_us, layers_us, mean_us, len(r), reserved, float(used_mib.sum()) / total_mib)
            )
        for i in np.flatnonzero(done).tolist():
            left_mib[active.gpu[i]] += work.kv_mib[r[i]]
            held_mib[active.gpu[i]] -= work.kv_mib[r[i]]
            if turn >= warmup_steps:
                tpot_us = (now_us - active.begun_us[i]) / int(work.output_tokens[r[i]])
                ended.append((tpot_us, active.begun_us[i] - active.came_us[i]))
        if done.any():
            active.keep(~done)
    if not rows:
        raise InputError(f"{plan.name}: nothing is left to decode after the warm-up")
    return _result(rows, ended, now_us - measured_from_us, refused)


def _require_fit(plan: ServedPlan, work: Workload, batch_limit: int | None) -> None:
    layers, experts = plan.hosts.shape[:2]
    if (work.trace.layers, work.trace.experts) != (layers, experts):
        raise InputError(
            f"trace {work.trace.name}: {work.trace.layers} layers of {work.trace.experts} experts, "
            f"the plan has {layers} of {experts}"
        )
    if batch_limit is None and not np.isfinite(plan.kv_mib).all():
        raise InputError("the instance gives no memory: say how many requests decode at once")


def _arrive(
    work: Workload, waiting: deque[tuple[int, float]], came: int, now_us: float, busy: bool
) -> tuple[int, float]:
    """Queue the requests that have arrived; return how many have, and the idle time until then."""
    if work.arrival_s is None:
        return came, 0.0
    idle_us = 0.0
    if not busy and not waiting and came < len(work):
        idle_us = max(0.0, 1e6 * float(work.arrival_s[came]) - now_us)
    while came < len(work) and 1e6 * work.arrival_s[came] <= now_us + idle_us + 1e-6:
        waiting.append((came, 1e6 * float(work.arrival_s[came])))
        came += 1
    return came, idle_us


def _result(
    rows: list[tuple[float, float, float, int, float, float]],
    ended: list[tuple[float, float]],
    elapsed_us: float,
    refused: int,
) -> Replay:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    table = np.array(ended).reshape(-1, 2)
    return Replay(
        step_us=columns[0],
        layers_us=columns[1],
        mean_gpu_us=columns[2],
        batch=columns[3].astype(np.int64),
        kv_reserved=columns[4],
        kv_used=columns[5],
        request_tpot_us=table[:, 0],
        request_wait_us=table[:, 1],
        elapsed_us=elapsed_us,
        refused=refused,
    )
