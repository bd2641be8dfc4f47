"""One batch on one layer as arrays: which experts have tokens, and where their replicas are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.problem import FloatArray, IntArray, LayerTime

#: More tokens than this in one layer and batch are refused: products stay exact in 64 bits.
MOST_TOKENS = 2**40


@dataclass(frozen=True)
class LayerBatch:
    """Experts with tokens and their replicas, in compressed rows.

    Replicas of the i-th of these experts are ``first[i]`` to ``first[i + 1]``.

    Attributes
    ----------
    layer_time : LayerTime
    gpus : int
    expert : int array, shape (m,)
        Numbers of the experts that have tokens, ascending.
    tokens : int array, shape (m,)
        At least 1 each.
    first : int array, shape (m + 1,)
    gpu : int array, shape (R,)
        Ascending within an expert.
    """

    layer_time: LayerTime
    gpus: int
    expert: IntArray
    tokens: IntArray
    first: IntArray
    gpu: IntArray

    @cached_property
    def copies(self) -> IntArray:
        """Replicas of each expert, shape (m,)."""
        return np.diff(self.first)

    @cached_property
    def owner(self) -> IntArray:
        """Expert (by position) of each replica, shape (R,)."""
        return np.repeat(np.arange(len(self.tokens)), self.copies)

    @cached_property
    def order(self) -> IntArray:
        """Experts without a choice first, then many tokens first, shape (m,)."""
        return np.lexsort((-self.tokens, self.copies))

    @cached_property
    def on(self) -> tuple[IntArray, IntArray]:
        """Replicas GPU by GPU: where those of each begin, shape (G + 1,), and all, shape (R,)."""
        begins = np.concatenate([[0], np.cumsum(np.bincount(self.gpu, minlength=self.gpus))])
        return begins.astype(np.int64), np.argsort(self.gpu, kind="stable")

    @cached_property
    def cost(self) -> FloatArray:
        """Base, expert, token base, token (us), shape (4,)."""
        f = self.layer_time
        return np.array([f.base_us, f.expert_us, f.token_base_us, f.token_us])

    @property
    def mixed(self) -> bool:
        """Whether both activations and tokens cost; else the optimum is a flow."""
        return self.layer_time.counts_tokens and self.layer_time.expert_us > 0

    def assignment(self, sent: npt.NDArray[np.generic]) -> list[tuple[int, int, float]]:
        """Tokens of each replica, shape (R,), as (expert, gpu, tokens); zeros are left out."""
        at = np.flatnonzero(sent)
        experts = self.expert[self.owner[at]].tolist()
        return list(zip(experts, self.gpu[at].tolist(), sent[at].tolist(), strict=True))


def layer_batch(
    hosts: npt.NDArray[np.bool_], counts: npt.ArrayLike, layer_time: LayerTime
) -> LayerBatch:
    """Return one batch on one layer.

    Parameters
    ----------
    hosts : bool array, shape (E, G)
    counts : int array, shape (E,)
        Tokens of each expert.
    layer_time : LayerTime

    Raises
    ------
    InputError
        Counts are not whole, negative or too many, or an expert with tokens is hosted nowhere.
    """
    hosts = np.asarray(hosts, dtype=bool)
    n = whole_counts(counts, hosts.shape[0])
    expert = np.flatnonzero(n)
    held = hosts[expert]
    if nowhere := expert[~held.any(axis=1)].tolist():
        raise InputError(f"no GPU hosts expert {nowhere[0]}, which has tokens")
    first = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int64)
    gpu = np.nonzero(held)[1].astype(np.int64)
    return LayerBatch(layer_time, hosts.shape[1], expert, n[expert], first, gpu)


def whole_counts(counts: npt.ArrayLike, experts: int) -> IntArray:
    """Return token counts with experts as last axis as whole numbers.

    Raises
    ------
    InputError
        They are not whole, negative, too many, or not for so many experts.
    """
    given = np.asarray(counts)
    if given.ndim == 0 or given.shape[-1] != experts:
        raise InputError(f"counts: shape {given.shape}, {experts} experts are needed")
    if given.dtype.kind not in "fiu" or not np.isfinite(given).all():
        raise InputError("counts: whole numbers are needed")
    if (given < 0).any() or float(given.sum()) > MOST_TOKENS:
        raise InputError(f"counts: numbers from 0, together at most {MOST_TOKENS}, are needed")
    n = given.astype(np.int64)
    if (n != given).any():
        raise InputError("counts: whole numbers are needed")
    return n
