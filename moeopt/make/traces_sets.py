"""Expert sets as numbers: the rank of a set of k of E experts among all such sets.

A token's choice takes 2 bytes instead of 4 (gpt-oss-20b) and 4 instead of 6 (DeepSeek-V2-Lite): the
order of the choice, which no layer time depends on, is dropped. With ascending members
``e_0 < e_1 < …`` the rank is ``Σ_i C(e_i, i + 1)`` (the combinatorial number system).
"""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError


def _table(experts: int, top_k: int) -> npt.NDArray[np.int64]:
    """``C(e, i + 1)`` for every place i and expert e, shape (k, E)."""
    return np.array([[comb(e, i + 1) for e in range(experts)] for i in range(top_k)], np.int64)


def rank_sets(ids: npt.ArrayLike, experts: int) -> npt.NDArray[np.unsignedinteger]:
    """Rank every token's set of experts.

    Parameters
    ----------
    ids : int array, shape (..., k)
        Experts in any order, distinct in a row.
    experts : int

    Returns
    -------
    unsigned int array, shape (...)
        In the smallest type that holds ``C(E, k) - 1``.

    Raises
    ------
    InputError
        An expert that does not exist, or one chosen twice.
    """
    members = np.sort(np.asarray(ids, dtype=np.int64), axis=-1)
    if members.size and not 0 <= members.min() <= members.max() < experts:
        raise InputError(f"expert choices: an expert is not in 0..{experts - 1}")
    if (np.diff(members, axis=-1) == 0).any():
        raise InputError("expert choices: a token chose one expert twice")
    top_k = members.shape[-1]
    table = _table(experts, top_k)
    rank = np.zeros(members.shape[:-1], dtype=np.int64)
    for i in range(top_k):
        rank += table[i, members[..., i]]
    return rank.astype(np.min_scalar_type(comb(experts, top_k) - 1))


def sets_of(ranks: npt.ArrayLike, experts: int, top_k: int) -> npt.NDArray[np.uint8]:
    """Return the ascending experts of each rank, shape (..., k): the inverse of :func:`rank_sets`.

    Raises
    ------
    InputError
        A rank that no set has.
    """
    left = np.array(ranks, dtype=np.int64)
    if left.size and not 0 <= left.min() <= left.max() < comb(experts, top_k):
        raise InputError(f"expert choices: a number is no rank of {top_k} of {experts} experts")
    table = _table(experts, top_k)
    found = np.zeros((*left.shape, top_k), dtype=np.uint8)
    for i in reversed(range(top_k)):
        # The largest e with C(e, i + 1) <= what is left.
        member = np.searchsorted(table[i], left, side="right") - 1
        found[..., i] = member
        left -= table[i, member]
    return found
