"""``sampled`` routing of a joint plan: K decode steps of its waves with whole tokens.

``joint`` plans with *mean* routing: expected (real) tokens. That charges every expert that any
request of the wave may use, and sees no imbalance but that of the expectation, so it bounds the
mean of real steps on neither side. Here every request draws ``top_k`` experts in every layer and
step, and the mean of the layer times of K such steps stands for the wave.

A request of class c draws by systematic sampling (Madow, Ann. Math. Stat. 20, 1949): with the
experts in a random order and one uniform u, those where the running sum of the usage passes u,
u + 1, …, u + top_k − 1. Every expert is drawn with a probability of exactly its usage, none twice
(a usage above 1 counts as so many tokens). Which experts go together is not in the usage: that is
sampled as if by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.problem import FloatArray, IntArray, ProblemData
from moeopt.simulate.served import serve_solution
from moeopt.solution import Solution


@dataclass(frozen=True)
class SampledTimes:
    """Step times of the waves that decode anything, shape (W,), under both readings.

    Attributes
    ----------
    steps : int array
        Decode steps of each wave.
    mean_us : float array
        One step under mean routing, as the checker evaluates it (and charges replicas).
    sampled_us, error_us : float arrays
        Mean of K sampled steps, and its standard error.
    samples : int
    rule : str
        Dispatch of the sampled steps.
    """

    steps: IntArray
    mean_us: FloatArray
    sampled_us: FloatArray
    error_us: FloatArray
    samples: int
    rule: str

    @property
    def mean_makespan_us(self) -> float:
        """``Σ_w D_w τ_w`` under mean routing."""
        return float(self.steps @ self.mean_us)

    @property
    def sampled_makespan_us(self) -> float:
        """``Σ_w D_w τ_w`` under sampled routing."""
        return float(self.steps @ self.sampled_us)

    @property
    def mean_error(self) -> float:
        """Relative error of the makespan under mean routing against the sampled one."""
        return self.mean_makespan_us / self.sampled_makespan_us - 1.0


@njit(cache=True)
def draw_experts(usage: Any, count: int, top_k: int, order: Any, starts: Any, ids: Any) -> None:
    """Systematic samples: one request for each start, ``top_k`` experts each.

    Parameters
    ----------
    usage : float array, shape (E,)
    order : int array, shape (E,)
        The experts in the order in which the usage is summed.
    starts : float array, shape (count,)
        Uniform in [0, 1).
    ids : unsigned int array, shape (count, top_k)
        Overwritten.
    """
    sums = np.zeros(len(usage))
    total = 0.0
    last = 0
    for j in range(len(usage)):
        total += usage[order[j]]
        sums[j] = total
        if usage[order[j]] > 0.0:
            last = j
    for i in range(count):
        j = 0
        for place in range(top_k):
            # Rounding may leave the total a little below top_k: the last used expert takes it.
            while j < last and sums[j] <= starts[i] + place:
                j += 1
            ids[i, place] = order[j]


def sampled_step_time(
    data: ProblemData,
    solution: Solution,
    samples: int = 200,
    seed: int = 0,
    *,
    rule: str | None = None,
) -> SampledTimes:
    """Evaluate a joint plan under sampled routing, beside mean routing.

    Parameters
    ----------
    data : ProblemData
        Prepared for ``joint``.
    solution : Solution
    samples : int
        Steps of each wave (at least 2).
    seed : int
    rule : str, optional
        Dispatch; default ``plan`` where the plan states one, else ``level``.

    Raises
    ------
    InputError
        Not a joint plan, or fewer than two samples.
    """
    if data.requests is None or solution.problem != "joint":
        raise InputError("sampled routing of waves needs a plan of the problem joint")
    if samples < 2:
        raise InputError("sampled routing needs at least 2 samples")
    plan = serve_solution(data, solution)
    rule = rule or plan.default_rule
    report = check_solution(data, solution)
    waves = [(w, wave) for w, wave in enumerate(report.details["waves"]) if wave["requests"]]
    counts = solution.requests_array(data.requests.names, data.gpus).sum(axis=2)
    rng = np.random.default_rng(seed)
    sampled = np.zeros((len(waves), samples))
    for i, (w, wave) in enumerate(waves):
        for s in range(samples):
            ids = _draw(data, counts[:, w], rng)
            layers_us = plan.step(ids, np.arange(len(ids)), rule, s)[0]
            sampled[i, s] = wave["attention_us"] + layers_us
    return SampledTimes(
        steps=np.array([wave["steps"] for _, wave in waves], dtype=np.int64),
        mean_us=np.array([wave["step_us"] for _, wave in waves]),
        sampled_us=sampled.mean(axis=1),
        error_us=sampled.std(axis=1, ddof=1) / math.sqrt(samples),
        samples=samples,
        rule=rule,
    )


def _draw(data: ProblemData, counts: IntArray, rng: np.random.Generator) -> np.ndarray:
    """Experts of one step of a wave, shape (requests, L, k)."""
    assert data.requests is not None
    kind = np.uint8 if data.experts <= 256 else np.uint16
    ids = np.empty((data.layers, int(counts.sum()), data.top_k), dtype=kind)
    begin = 0
    for c in np.flatnonzero(counts).tolist():
        end = begin + int(counts[c])
        starts = rng.random((data.layers, end - begin))
        for l in range(data.layers):
            draw_experts(
                data.requests.usage[c, l],
                end - begin,
                data.top_k,
                rng.permutation(data.experts),
                starts[l],
                ids[l, begin:end],
            )
        begin = end
    return np.ascontiguousarray(ids.transpose(1, 0, 2))
