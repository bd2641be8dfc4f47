"""What the checker evaluates: scenarios of a layer, or waves of a joint plan, as cases."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.dispatch_flow import split_time
from moeopt.problem import FloatArray, IntArray, ProblemData

BY_DISPATCH = "dispatch of the solution"

BoolArray = npt.NDArray[np.bool_]
#: Valid stated dispatches by (layer, case).
Stated = dict[tuple[int, int], list[tuple[int, int, float]]]


class Cases(Protocol):
    """Layer times of a plan, case by case; times are one float array (cases,) a layer."""

    noun: str
    whole: bool

    def count(self, layer: int) -> int:
        """Cases of a layer."""

    def tokens(self, layer: int, case: int) -> dict[int, float]:
        """Tokens of each expert that has any."""

    def needed(self) -> BoolArray:
        """Experts that have tokens in some case, shape (L, E)."""

    def times(self, hosts: BoolArray, stated: Stated) -> tuple[list[FloatArray], set[str]]:
        """Layer times, and how they were computed."""

    def least_times(self) -> list[FloatArray]:
        """Lower bounds of layer times under any hosts."""

    def objective(self, times: list[FloatArray]) -> float:
        """The problem's objective of these layer times."""

    def details(self, times: list[FloatArray]) -> dict[str, Any]:
        """Figures of the report, as plain lists and numbers."""


class ScenarioCases:
    """Cases of ``placement`` and ``replication``: the scenarios, with whole tokens."""

    noun = "scenario"
    whole = True

    def __init__(self, data: ProblemData) -> None:
        self.data = data

    def count(self, layer: int) -> int:
        """Cases of a layer."""
        return len(self.data.scenarios[layer])

    def tokens(self, layer: int, case: int) -> dict[int, float]:
        """Tokens of each expert that has any."""
        rows = self.data.scenarios[layer]
        return dict(zip(rows.members(case).tolist(), rows.counts(case).tolist(), strict=True))

    def needed(self) -> BoolArray:
        """Experts that have tokens in some case, shape (L, E)."""
        used = np.zeros((self.data.layers, self.data.experts), dtype=bool)
        for layer, rows in enumerate(self.data.scenarios):
            used[layer, rows.expert] = True
        return used

    def times(self, hosts: BoolArray, stated: Stated) -> tuple[list[FloatArray], set[str]]:
        """Layer times, and how they were computed."""
        times: list[FloatArray] = []
        methods: set[str] = set()
        for layer, rows in enumerate(self.data.scenarios):
            form = self.data.layer_time
            given = {s: parts for (at, s), parts in stated.items() if at == layer}
            chosen = (hosts[layer].sum(axis=1) > 1)[rows.expert].any()
            if not given or not chosen or dispatch.is_polynomial(form):
                values, method = dispatch.layer_times(form, rows, hosts[layer])
                methods.update(method.split("; "))
            else:
                values = np.zeros(len(rows))
                where = dispatch.host_lists(hosts[layer])
                nodes = dispatch.share_nodes(len(rows))
                for s in range(len(rows)):
                    tokens = self.tokens(layer, s)
                    values[s], method = _time(self.data, where, tokens, True, nodes, given.get(s))
                    methods.add(method)
            times.append(values)
        return times, methods

    def least_times(self) -> list[FloatArray]:
        """Lower bounds of layer times under any hosts."""
        return [
            np.array([_least(self.data, rows.counts(s), True) for s in range(len(rows))])
            for rows in self.data.scenarios
        ]

    def layer_objectives(self, times: list[FloatArray]) -> list[float]:
        """Expected layer time of each layer."""
        return [
            math.fsum((rows.weight * t).tolist())
            for rows, t in zip(self.data.scenarios, times, strict=True)
        ]

    def objective(self, times: list[FloatArray]) -> float:
        """``Σ_l Σ_ω p_ω T_ω``."""
        return math.fsum(self.layer_objectives(times))

    def details(self, times: list[FloatArray]) -> dict[str, Any]:
        """Figures of the report."""
        return {"layers": self.layer_objectives(times)}


class JointCases:
    """Cases of ``joint``: the waves of a plan, with real (expected) tokens.

    Parameters
    ----------
    data : ProblemData
    z : int array, shape (C, W, G)
        Requests. Waves without any take no time.
    """

    noun = "wave"
    whole = False

    def __init__(self, data: ProblemData, z: IntArray) -> None:
        assert data.requests is not None
        self.data = data
        self.requests = data.requests
        self.z = z
        by_wave = z.sum(axis=2)
        self.busy = by_wave.any(axis=0)
        # [W, L, E]; a sum of non-negative terms is positive iff one of them is.
        self.load = np.einsum("cle,cw->wle", self.requests.usage, by_wave.astype(np.float64))
        self.kv_mib = np.einsum("c,cwg->wg", self.requests.kv_mib, z.astype(np.float64))
        self.steps = [self._steps(by_wave[:, w], w) for w in range(z.shape[1])]

    def _steps(self, counts: IntArray, w: int) -> int:
        if not counts.any():
            return 0
        prescribed = self.data.wave_steps
        if prescribed is not None and w < len(prescribed):
            return int(prescribed[w])
        return int(self.requests.output_tokens[counts > 0].max())

    def count(self, layer: int) -> int:
        """Cases of a layer."""
        return len(self.steps)

    def tokens(self, layer: int, case: int) -> dict[int, float]:
        """Tokens of each expert that has any."""
        return {e: n for e, n in enumerate(self.load[case, layer].tolist()) if n > 0}

    def needed(self) -> BoolArray:
        """Experts that have tokens in some case, shape (L, E)."""
        return (self.load > 0).any(axis=0)

    def times(self, hosts: BoolArray, stated: Stated) -> tuple[list[FloatArray], set[str]]:
        """Layer times, and how they were computed."""
        waves = np.flatnonzero(self.busy).tolist()
        nodes = dispatch.share_nodes(len(waves) * len(hosts))
        times, methods = [], set()
        for layer in range(len(hosts)):
            values = np.zeros(len(self.steps))
            where = dispatch.host_lists(hosts[layer])
            resident = hosts[layer].sum(axis=0).tolist()
            for w in waves:
                if self.data.charged == "resident":
                    values[w] = _resident_time(self.data, where, resident, self.tokens(layer, w))
                    methods.add("exact: max-flow")
                    continue
                given = stated.get((layer, w))
                tokens = self.tokens(layer, w)
                values[w], method = _time(self.data, where, tokens, False, nodes, given)
                methods.add(method)
            times.append(values)
        return times, methods

    def least_times(self) -> list[FloatArray]:
        """Lower bounds of layer times under any hosts."""
        waves = range(len(self.steps))
        return [
            np.array([_least(self.data, self.load[w, layer], False) for w in waves])
            for layer in range(self.data.layers)
        ]

    def attention_us(self) -> FloatArray:
        """Attention time of a step of each wave, shape (W,)."""
        fullest = self.kv_mib.max(axis=1, initial=0.0)
        return self.data.attention_base_us + self.data.attention_us_per_mib * fullest

    def step_us(self, times: list[FloatArray]) -> list[float]:
        """Time of one decode step of each wave; 0 for a wave without requests."""
        return [
            math.fsum([attention, *(float(t[w]) for t in times)]) if self.busy[w] else 0.0
            for w, attention in enumerate(self.attention_us().tolist())
        ]

    def objective(self, times: list[FloatArray]) -> float:
        """Makespan ``Σ_w D_w τ_w`` in microseconds."""
        return math.fsum(d * t for d, t in zip(self.steps, self.step_us(times), strict=True))

    def details(self, times: list[FloatArray]) -> dict[str, Any]:
        """Figures of the report."""
        step_us, attention = self.step_us(times), self.attention_us().tolist()
        waves = [
            {
                "steps": self.steps[w],
                "step_us": step_us[w],
                "attention_us": attention[w] if self.busy[w] else 0.0,
                "layer_us": [float(t[w]) for t in times],
                "kv_mib": self.kv_mib[w].tolist(),
                "requests": int(self.z[:, w].sum()),
            }
            for w in range(len(self.steps))
        ]
        makespan_us = self.objective(times)
        tokens = int(self.z.sum(axis=(1, 2)) @ self.requests.output_tokens)
        return {
            "layers": [
                math.fsum(d * float(v) for d, v in zip(self.steps, t, strict=True)) for t in times
            ],
            "waves": waves,
            "tokens_per_s": 1e6 * tokens / makespan_us if makespan_us > 0 else None,
        }


def _time(
    data: ProblemData,
    where: list[tuple[int, ...]],
    tokens: dict[int, float],
    whole: bool,
    nodes: int,
    given: list[tuple[int, int, float]] | None,
) -> tuple[float, str]:
    """One layer time by the checker's order of methods."""
    hosts = [where[e] for e in tokens]
    choice = any(len(h) > 1 for h in hosts)
    if given is not None and choice and not dispatch.is_polynomial(data.layer_time):
        return dispatch.given_time(data.layer_time, given, data.gpus), BY_DISPATCH
    result = dispatch.exact_time(data.layer_time, hosts, list(tokens.values()), whole, nodes)
    return result.time, result.method


def _resident_time(
    data: ProblemData, where: list[tuple[int, ...]], resident: list[int], tokens: dict[int, float]
) -> float:
    """Layer time with every resident replica charged: only the tokens remain to be split."""
    hosts = [where[e] for e in tokens]
    time, _ = split_time(data.layer_time, hosts, list(tokens.values()), resident, False)
    return time


def _least(data: ProblemData, tokens: npt.NDArray[np.generic], whole: bool) -> float:
    return dispatch.time_lower_bound(data.layer_time, tokens.tolist(), data.gpus, whole)
