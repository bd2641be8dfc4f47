"""Checked plans of n requests in flight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.checker import check_solution
from moeopt.front.steady import SteadyState
from moeopt.instance import Instance
from moeopt.joint.assemble import Assembler
from moeopt.prepare import prepare
from moeopt.solution import Solution


@dataclass(frozen=True)
class SteadyPlan:
    """A plan that the checker accepted, of an instance with n requests in one wave.

    Attributes
    ----------
    requests : int
    step_us : float
        Time per output token.
    throughput : float
        Tokens a second.
    replicas : int
        Beyond one of each expert, all layers.
    kv_mib, kv_share : float
        KV cache of all GPUs; its share of the memory for experts and cache.
    instance, solution
        What ``moeopt check`` takes.
    """

    requests: int
    step_us: float
    throughput: float
    replicas: int
    kv_mib: float
    kv_share: float
    instance: Instance
    solution: Solution


class Planner:
    """Plans of one steady state, made once and kept.

    Attributes
    ----------
    made : dict of int to SteadyPlan or None
        None where no plan was found.
    """

    def __init__(
        self,
        steady: SteadyState,
        *,
        seed: int = 0,
        deadline: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
        on_plan: Callable[[SteadyPlan], None] = lambda plan: None,
    ) -> None:
        self.steady = steady
        self.seed = seed
        self.deadline = deadline
        self.stop = stop
        self.on_plan = on_plan
        self.made: dict[int, SteadyPlan | None] = {}

    @property
    def late(self) -> bool:
        """Whether the time is out, or somebody asked to stop."""
        return self.stop() or time.monotonic() > self.deadline

    def plan(self, n: int) -> SteadyPlan | None:
        """Plan n requests; None if that fails or is stopped, which proves nothing."""
        if n not in self.made:
            if self.stop():
                return None
            found = self._plan(n)
            self.made[n] = found
            if found is not None:
                self.on_plan(found)
        return self.made[n]

    def best(self, limit_us: float = math.inf) -> SteadyPlan | None:
        """Return the plan of the largest throughput among those made whose step is short enough."""
        within = [p for p in self.made.values() if p is not None and p.step_us <= limit_us]
        return max(within, key=lambda p: p.throughput, default=None)

    def _plan(self, n: int) -> SteadyPlan | None:
        instance = self.steady.instance_of(n)
        data = prepare(instance, "joint")
        assert data.requests is not None
        assert data.free_mib is not None
        counts = data.requests.count[:, None]
        made = Assembler(data, self.seed).plan(counts, deadline=self.deadline, stop=self.stop)
        if made is None:
            return None
        report = check_solution(data, made[1])
        if report.violations:
            raise AssertionError(f"{instance.name}: {report.violations[0].message}")
        wave = report.details["waves"][0]
        step_us = float(wave["step_us"])
        kv_mib = float(np.sum(wave["kv_mib"]))
        return SteadyPlan(
            requests=n,
            step_us=step_us,
            throughput=n / step_us * 1e6,
            replicas=int(made[1].hosts_array(data.gpus).sum()) - data.layers * data.experts,
            kv_mib=kv_mib,
            kv_share=kv_mib / float(data.free_mib.sum()),
            instance=instance,
            solution=made[1],
        )
