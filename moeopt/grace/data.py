"""What the three steps see: nodes of GPUs, statistics of tokens, and the plan they make.

Attention is data-parallel: a token lives on one GPU, its home, in every layer. Its experts may be
elsewhere; where its copy goes, and how far, is the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.traces_shipped import Trace
from moeopt.problem import Scenarios
from moeopt.routing import distinct_scenarios

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

#: GPUs of a token are kept as bytes.
MOST_GPUS = 255


@dataclass(frozen=True)
class Nodes:
    """Equal nodes of equal GPUs; GPU g is on node ``g // gpus_per_node``.

    Raises
    ------
    InputError
        There is no GPU, or there are more than :data:`MOST_GPUS`.
    """

    count: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        if min(self.count, self.gpus_per_node) < 1 or self.gpus > MOST_GPUS:
            raise InputError(
                f"{self.count} nodes of {self.gpus_per_node} GPUs: between 1 and {MOST_GPUS} GPUs "
                "are needed"
            )

    @property
    def gpus(self) -> int:
        """GPUs of all nodes, G."""
        return self.count * self.gpus_per_node

    @property
    def node_of(self) -> IntArray:
        """Node of each GPU, shape (G,)."""
        return np.arange(self.gpus) // self.gpus_per_node


@dataclass(frozen=True)
class Profile:
    """What the steps know of the tokens: statistics of the fitted part of a trace.

    Attributes
    ----------
    sets : tuple of int arrays, one a layer, shape (S, k)
        Distinct expert sets.
    weight : tuple of int arrays, one a layer, shape (S,)
        Tokens that chose each.
    load : int array, shape (L, E)
        Tokens of each expert.
    affinity : float array, shape (L, E, E)
        Tokens that chose both experts; symmetric, zeros on the diagonal.
    """

    sets: tuple[IntArray, ...]
    weight: tuple[IntArray, ...]
    load: IntArray
    affinity: FloatArray

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return len(self.sets)

    @property
    def experts(self) -> int:
        """Experts of a layer, E."""
        return int(self.load.shape[1])

    @property
    def scenarios(self) -> tuple[Scenarios, ...]:
        """Sets and weights of each layer as scenarios, one token for each expert."""
        return tuple(
            Scenarios(
                np.arange(0, sets.size + 1, sets.shape[1], dtype=np.int64),
                sets.ravel(),
                np.ones(sets.size, dtype=np.int64),
                weight / weight.sum(),
            )
            for sets, weight in zip(self.sets, self.weight, strict=True)
        )


def profile(trace: Trace) -> Profile:
    """Collect the statistics of a trace."""
    found = [distinct_scenarios(trace.ids[:, l]) for l in range(trace.layers)]
    load = np.zeros((trace.layers, trace.experts), dtype=np.int64)
    affinity = np.zeros((trace.layers, trace.experts, trace.experts))
    for l, (sets, weight) in enumerate(found):
        chosen = np.zeros((len(sets), trace.experts))
        np.put_along_axis(chosen, sets, 1.0, axis=1)
        affinity[l] = chosen.T @ (chosen * weight[:, None])
        load[l] = np.rint(affinity[l].diagonal()).astype(np.int64)
        np.fill_diagonal(affinity[l], 0.0)
    sets_of, weight_of = zip(*found, strict=True)
    return Profile(tuple(sets_of), tuple(weight_of), load, affinity)


@dataclass(frozen=True)
class Batches:
    """Tokens of the measured part, batch by batch.

    Attributes
    ----------
    ids : uint8 or uint16 array, shape (B, T, L, k)
        Experts of every token of every batch.
    home : int array, shape (T,)
        GPU where each token of a batch lives: equally many on every GPU.
    """

    ids: npt.NDArray[np.unsignedinteger]
    home: IntArray


def make_batches(trace: Trace, nodes: Nodes, tokens: int, seed: int) -> Batches:
    """Deal requests to GPUs and their tokens into batches.

    Requests, in a random order, live on the GPU that has the fewest tokens so far. A batch takes
    equally many tokens of every GPU, drawn without replacement from all tokens that live there: a
    decode step of very many requests. Tokens that fill no batch are left out.

    Parameters
    ----------
    tokens : int
        Tokens of a batch, a multiple of the number of GPUs.

    Raises
    ------
    InputError
        The tokens cannot be divided among the GPUs, or fill no batch.
    """
    if tokens < 1 or tokens % nodes.gpus:
        raise InputError(f"a batch of {tokens} tokens cannot be divided among {nodes.gpus} GPUs")
    rng = np.random.default_rng(seed)
    here: list[list[IntArray]] = [[] for _ in range(nodes.gpus)]
    dealt = np.zeros(nodes.gpus, dtype=np.int64)
    for r in rng.permutation(len(trace.lengths)).tolist():
        g = int(dealt.argmin())
        here[g].append(np.arange(trace.offsets[r], trace.offsets[r + 1]))
        dealt[g] += trace.lengths[r]
    each = tokens // nodes.gpus
    batches = int(dealt.min()) // each
    if batches == 0:
        raise InputError(f"{trace.name}: some GPU has no {each} tokens: no batch of {tokens}")
    rows = [
        rng.permutation(np.concatenate(parts))[: batches * each].reshape(batches, each)
        for parts in here
    ]
    return Batches(trace.ids[np.concatenate(rows, axis=1)], np.repeat(np.arange(nodes.gpus), each))


@dataclass(frozen=True)
class Plan:
    """Where experts are, and what the routing is told about loads.

    Attributes
    ----------
    hosts : bool array, shape (L, E, G)
        GPUs that hold each expert.
    primary : int array, shape (L, E)
        GPU of the first copy of each expert.
    predicted : float array, shape (L, G)
        Load that weighted round robin expects on each GPU, in tokens of the profile.
    """

    nodes: Nodes
    hosts: BoolArray
    primary: IntArray
    predicted: FloatArray

    @property
    def extra_copies(self) -> IntArray:
        """Copies of each layer beyond one of every expert, shape (L,)."""
        return np.asarray(self.hosts.sum(axis=(1, 2)) - self.hosts.shape[1])


def plan_problems(plan: Plan) -> list[str]:
    """Check a plan: one line for each kind of violation, empty where it is sound."""
    lines = []
    for l, e in np.argwhere(~plan.hosts.any(axis=2)).tolist()[:1]:
        lines.append(f"layer {l}: expert {e} is on no GPU")
    held = np.take_along_axis(plan.hosts, plan.primary[:, :, None], axis=2)[:, :, 0]
    for l, e in np.argwhere(~held).tolist()[:1]:
        lines.append(f"layer {l}: expert {e} is not on its primary GPU {plan.primary[l, e]}")
    if not np.isfinite(plan.predicted).all() or (plan.predicted < 0).any():
        lines.append("predicted loads must be finite and not negative")
    return lines


def even_loads(hosts: BoolArray, load: npt.ArrayLike) -> FloatArray:
    """Loads of the GPUs where copies of an expert share its tokens evenly.

    Parameters
    ----------
    hosts : bool array, shape (..., E, G)
    load : array, shape (..., E)

    Returns
    -------
    float array, shape (..., G)
    """
    share = np.asarray(load, dtype=np.float64) / hosts.sum(axis=-1)
    return np.asarray((hosts * share[..., None]).sum(axis=-2))
