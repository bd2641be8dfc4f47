"""ProblemData: the index sets and arrays that every formulation, bound and heuristic sees.

Derived once from an instance by :func:`prepare`; nothing below knows the file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moeopt.activation.data import ActivationData
    from moeopt.affinity.data import AffinityData
    from moeopt.balance.data import BalanceData
    from moeopt.paging.data import PagingData
    from moeopt.topology.data import TopologyData

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PROBLEMS = (
    "placement",
    "replication",
    "joint",
    "balance",
    "activation",
    "paging",
    "topology",
    "affinity",
)

#: Tangents that stand for the ``p2`` form in linear formulations.
P2_TANGENTS = 17


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer on one GPU, ``f(A, N)``: A activated replicas, N token-expert pairs.

    ``unit``: A; ``sum``: a + b·A + β·N; ``max``: max(a + b·A, c + β·N);
    ``p2``: a + sqrt((b·A)² + (β·N)²). In microseconds, but for ``unit`` (expert-time units).
    """

    form: str = "unit"
    base_us: float = 0.0  # a
    expert_us: float = 0.0  # b
    token_base_us: float = 0.0  # c
    token_us: float = 0.0  # β

    def of(self, activated: npt.ArrayLike, tokens: npt.ArrayLike) -> FloatArray:
        """Evaluate f elementwise (broadcasting)."""
        a = np.asarray(activated, dtype=np.float64)
        n = np.asarray(tokens, dtype=np.float64)
        if self.form == "unit":
            return a + 0.0 * n
        if self.form == "sum":
            return self.base_us + self.expert_us * a + self.token_us * n
        if self.form == "max":
            return np.maximum(
                self.base_us + self.expert_us * a, self.token_base_us + self.token_us * n
            )
        if self.form == "p2":
            return self.base_us + np.hypot(self.expert_us * a, self.token_us * n)
        raise ValueError(f"unknown layer time form {self.form!r}")

    def pieces(self) -> tuple[tuple[float, float, float], ...]:
        """Affine functions of (A, N) whose largest value is f (``p2``: at most f).

        Returns
        -------
        tuple of (constant, per activation, per token)
            ``p2`` has tangents at angles of equal spacing: their largest value is at least
            ``cos(π/(4(m−1)))`` times the root, m = 17 (0.12 % below), never above it.
        """
        if self.form == "unit":
            return ((0.0, 1.0, 0.0),)
        if self.form == "sum":
            return ((self.base_us, self.expert_us, self.token_us),)
        if self.form == "max":
            return (
                (self.base_us, self.expert_us, 0.0),
                (self.token_base_us, 0.0, self.token_us),
            )
        # cos and sin are rounded down a little, so that rounding cannot lift a tangent above f;
        # the last cosine is 0, not the 6e-17 that floating point makes of it.
        shrink = 1.0 - 2.0**-50
        angles = np.linspace(0.0, np.pi / 2, P2_TANGENTS)
        cosines = [*np.cos(angles[:-1]).tolist(), 0.0]
        return tuple(
            (self.base_us, self.expert_us * cos * shrink, self.token_us * sin * shrink)
            for cos, sin in zip(cosines, np.sin(angles).tolist(), strict=True)
        )

    @property
    def counts_tokens(self) -> bool:
        """Whether f depends on the number of tokens (False: an expert is never worth splitting)."""
        return self.form != "unit" and self.token_us > 0.0


@dataclass(frozen=True)
class Scenarios:
    """Observed activations of one layer, in compressed rows.

    Scenario ``s`` activates ``expert[ptr[s]:ptr[s+1]]`` (ascending) with ``tokens`` each.

    Attributes
    ----------
    ptr : int array, shape (S + 1,)
    expert, tokens : int arrays, shape (ptr[-1],)
    weight : float array, shape (S,)
        Sums to 1.
    """

    ptr: IntArray
    expert: IntArray
    tokens: IntArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def sizes(self) -> IntArray:
        """Number of experts of each scenario, shape (S,)."""
        return np.diff(self.ptr)

    def members(self, s: int) -> IntArray:
        """Experts of scenario ``s``."""
        return self.expert[self.ptr[s] : self.ptr[s + 1]]

    def counts(self, s: int) -> IntArray:
        """Tokens of each expert of scenario ``s``."""
        return self.tokens[self.ptr[s] : self.ptr[s + 1]]


@dataclass(frozen=True)
class RequestClasses:
    """Classes of requests. ``kv_mib`` is one request's KV cache at its final length.

    ``usage[c, l, e]``: expected activations of expert e of layer l by one request of class c in
    one decode step; sums to top-k over e.
    """

    names: tuple[str, ...]
    count: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    kv_mib: FloatArray
    usage: FloatArray


@dataclass(frozen=True)
class ProblemData:
    """One instance, ready for one problem.

    Attributes
    ----------
    expert_mib : float
        Memory of one expert of one layer, whole bytes.
    free_mib : float array, shape (G,), or None
        Memory of each GPU left for experts and KV cache (memory − reserved − dense); None where
        slots alone limit.
    slots : int or None
        Experts of one layer that a GPU may host; None where memory alone limits.
    scenarios : tuple of Scenarios
        One a layer; empty tuple for ``joint``, ``balance`` and ``activation``.
    load : float array, shape (L, E)
    gpu_kind : int array, shape (G,)
        GPUs with equal numbers are interchangeable.
    waves : int
        Largest number of waves (``joint``).
    wave_steps : tuple of int or None
        Decode steps of each wave where they are prescribed.
    wave_requests : int array, shape (C, W), or None
        Requests of each class in each wave where they are prescribed.
    charged : {"activated", "resident"}
        Which replicas of a GPU a wave of ``joint`` is charged for: those that compute tokens, or
        all that the GPU hosts.
    uniform_slots : bool
        Whether a plan of ``joint`` must host equally many experts on every GPU in every layer.
    balance : BalanceData or None
        Loads, slots and moves of ``balance``; None for the other problems, and where counting
        shows that there is no plan (:func:`moeopt.feasibility.explain_infeasible` says why).
    topology : TopologyData or None
        Servers, hops, streams and room of ``topology``; None for the other problems.
    paging : PagingData or None
        Requests, cache and load times of ``paging``; None for the other problems.
    activation : ActivationData or None
        Scenarios, masses and budget of ``activation``; None for the other problems.
    affinity : AffinityData or None
        Tokens between layers, or scenarios, of ``affinity``; None for the other problems, and where
        counting shows that there is no plan.
    """

    name: str
    sha256: str
    problem: str
    layers: int
    experts: int
    top_k: int
    gpus: int
    expert_mib: float
    free_mib: FloatArray | None
    slots: int | None
    layer_time: LayerTime
    scenarios: tuple[Scenarios, ...]
    load: FloatArray
    gpu_kind: IntArray
    requests: RequestClasses | None = None
    waves: int = 0
    wave_steps: tuple[int, ...] | None = None
    wave_requests: IntArray | None = None
    charged: Literal["activated", "resident"] = "activated"
    uniform_slots: bool = False
    attention_base_us: float = 0.0
    attention_us_per_mib: float = 0.0
    layer_numbers: tuple[int, ...] = field(default=())
    balance: BalanceData | None = None
    topology: TopologyData | None = None
    paging: PagingData | None = None
    activation: ActivationData | None = None
    affinity: AffinityData | None = None


def objective_unit(data: ProblemData) -> str:
    """Unit of the objective: tokens (``balance``), expert-time units for ``unit``, microseconds."""
    if data.problem == "balance":
        return "tokens"
    if data.topology is not None:
        return "hops"
    if data.problem == "affinity":
        return "transfers" if data.scenarios else "tokens"
    if data.paging is not None:
        return "misses" if data.paging.load_us is None else "us"
    return "expert-time units" if data.layer_time.form == "unit" else "us"
