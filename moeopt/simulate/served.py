"""A plan as a serving system sees it: replicas, KV memory left, shares of a stated dispatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_kernel import RULES, step_times
from moeopt.dispatch_time import FORMS, cost_array
from moeopt.errors import InputError
from moeopt.problem import FloatArray, IntArray, LayerTime, ProblemData
from moeopt.solution import Solution

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ServedPlan:
    """Replicas of every layer, in compressed rows, and the memory they leave.

    Attributes
    ----------
    name : str
    hosts : bool array, shape (L, E, G)
    first : int array, shape (L, E + 1)
        Replicas of expert e of layer l are ``first[l, e]`` to ``first[l, e + 1]`` of ``gpu``.
    gpu : int array, shape (R,)
    share : float array, shape (R,), or None
        Share of its expert's tokens that each replica computes, where the plan states a dispatch.
    kv_mib : float array, shape (G,)
        Memory left for KV cache; infinite where the instance gives no memory.
    layer_time : LayerTime
    attention_base_us, attention_us_per_mib : float
    """

    name: str
    hosts: BoolArray
    first: IntArray
    gpu: IntArray
    share: FloatArray | None
    kv_mib: FloatArray
    layer_time: LayerTime
    attention_base_us: float
    attention_us_per_mib: float

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return int(self.hosts.shape[2])

    @property
    def replicas(self) -> int:
        """Replicas in all layers, beyond one of each expert."""
        return len(self.gpu) - self.hosts.shape[0] * self.hosts.shape[1]

    @property
    def default_rule(self) -> str:
        """``plan`` where the plan states a dispatch, else ``level``."""
        return "level" if self.share is None else "plan"

    def step(
        self, ids: npt.NDArray[np.unsignedinteger], tokens: IntArray, rule: str, turn: int = 0
    ) -> tuple[float, float]:
        """Return ``Σ_l max_g f`` and ``Σ_l mean_g f`` of one step in us (:func:`step_times`).

        Raises
        ------
        InputError
            The rule ``plan`` where the plan states no dispatch, or an unknown rule.
        """
        share, number = self._rule(rule)
        layers_us, mean_us = step_times(
            ids,
            tokens,
            self.first,
            self.gpu,
            share,
            number,
            turn,
            FORMS[self.layer_time.form],
            cost_array(self.layer_time),
            self.gpus,
        )
        return layers_us, mean_us

    def _rule(self, rule: str) -> tuple[FloatArray, int]:
        if rule not in RULES:
            raise InputError(f"dispatch {rule!r} is unknown (known: {', '.join(RULES)})")
        if self.share is not None:
            return self.share, RULES[rule]
        if rule == "plan":
            raise InputError(f"{self.name}: states no dispatch; take even or level")
        return np.zeros(len(self.gpu)), RULES[rule]

    def attention_us(self, kv_mib: npt.ArrayLike) -> float:
        """Attention time of a step with this KV cache on each GPU, shape (G,)."""
        fullest = float(np.max(kv_mib, initial=0.0))
        return self.attention_base_us + self.attention_us_per_mib * fullest


def served(
    data: ProblemData, hosts: BoolArray, *, name: str, share: FloatArray | None = None
) -> ServedPlan:
    """Make a served plan of replicas.

    Parameters
    ----------
    data : ProblemData
        Any problem; its layer time, attention and memory are taken.
    hosts : bool array, shape (L, E, G)
    name : str
    share : float array, shape (L, E, G), optional
        Tokens (or shares) of each replica; an expert without any is split evenly.

    Raises
    ------
    InputError
        An expert is hosted nowhere, or the replicas do not fit the memory.
    """
    copies = hosts.sum(axis=2)
    if (copies == 0).any():
        l, e = np.argwhere(copies == 0)[0].tolist()
        raise InputError(f"{name}: layer {l}, expert {e}: no GPU hosts it")
    held_mib = hosts.sum(axis=(0, 1)) * data.expert_mib
    free = np.full(data.gpus, np.inf) if data.free_mib is None else data.free_mib
    if (held_mib > free).any():
        g = int(np.argmax(held_mib - free))
        raise InputError(f"{name}: GPU {g}: {held_mib[g]:g} MiB of experts, {free[g]:g} free")
    ends = np.cumsum(copies.ravel()).reshape(copies.shape)
    begins = np.concatenate([[0], ends[:-1, -1]])
    first = np.concatenate([begins[:, None], ends], axis=1).astype(np.int64)
    flat = None
    if share is not None:
        inside = np.where(hosts, share, 0.0)
        whole = inside.sum(axis=2, keepdims=True)
        even = hosts / copies[:, :, None]
        flat = np.where(whole > 0, inside / np.where(whole > 0, whole, 1.0), even)[hosts]
    return ServedPlan(
        name,
        hosts,
        first,
        np.nonzero(hosts)[2].astype(np.int64),
        flat,
        free - held_mib,
        data.layer_time,
        data.attention_base_us,
        data.attention_us_per_mib,
    )


def serve_solution(data: ProblemData, solution: Solution, *, name: str = "plan") -> ServedPlan:
    """Make a served plan of a solution; a stated dispatch of ``joint`` gives the shares.

    Shares are those of all waves together. The dispatch of ``placement`` and ``replication`` is by
    scenario and says nothing about a step of many tokens: it is not used.

    Raises
    ------
    InputError
        See :func:`served`.
    """
    hosts = solution.hosts_array(data.gpus)
    share = None
    if solution.problem == "joint" and solution.dispatch is not None:
        share = np.zeros(hosts.shape)
        for l, waves in enumerate(solution.dispatch):
            for e, g, tokens in (part for wave in waves for part in wave):
                share[l, e, g] += tokens
    return served(data, hosts, name=name, share=share)
