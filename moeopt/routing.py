"""Routing statistics of one MoE layer, from per-token expert choices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError

#: Usage profiles are whole multiples of this: sums over requests are then exact in doubles.
USAGE_STEP = 2.0**-20


def distinct_scenarios(ids: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Collect the distinct expert sets of a layer.

    Parameters
    ----------
    ids : int array, shape (T, k)
        The experts chosen for each token, in any order.

    Returns
    -------
    experts : int array, shape (S, k)
        Ascending in a row; rows in lexicographic order.
    weight : int array, shape (S,)
        Tokens that chose exactly these experts; sums to T.

    Raises
    ------
    InputError
        No token, or a token that chose one expert twice.
    """
    tokens = np.asarray(ids)
    if tokens.ndim != 2 or tokens.size == 0:
        raise InputError(f"expert choices: expected a table [tokens, k], got shape {tokens.shape}")
    ordered = np.sort(tokens.astype(np.int64), axis=1)
    repeated = np.flatnonzero((np.diff(ordered, axis=1) == 0).any(axis=1))
    if repeated.size:
        raise InputError(f"expert choices: token {repeated[0]} chose one expert twice")
    experts, weight = np.unique(ordered, axis=0, return_counts=True)
    return experts, weight.astype(np.int64)


def expert_load(ids: npt.ArrayLike, experts: int) -> npt.NDArray[np.int64]:
    """Count the tokens of each expert of a layer, shape (E,), from choices of shape (T, k).

    Raises
    ------
    InputError
        An expert that does not exist.
    """
    chosen = np.asarray(ids).astype(np.int64).ravel()
    wrong = chosen[(chosen < 0) | (chosen >= experts)]
    if wrong.size:
        raise InputError(f"expert choices: expert {wrong[0]} is not in 0..{experts - 1}")
    return np.bincount(chosen, minlength=experts)


def usage_profile(load: npt.ArrayLike, top_k: int) -> npt.NDArray[np.float64]:
    """Scale loads to expected activations a decode step.

    Parameters
    ----------
    load : float array, shape (..., E)
        Non-negative; the scale of each row does not matter.
    top_k : int

    Returns
    -------
    float array, shape (..., E)
        Whole multiples of :data:`USAGE_STEP` (rounded by largest remainder), each row summing to
        exactly ``top_k``.
    """
    loads = np.asarray(load, dtype=np.float64)
    totals = loads.sum(axis=-1, keepdims=True)
    if not np.isfinite(loads).all() or (loads < 0).any() or (totals <= 0).any():
        raise InputError("loads must be non-negative, with at least one positive in every layer")
    steps = round(top_k / USAGE_STEP)
    ideal = loads / totals * steps
    whole = np.floor(ideal)
    missing = steps - whole.sum(axis=-1, keepdims=True)
    # The largest remainders are rounded up; equal ones in the order of the experts.
    rank = np.argsort(np.argsort(whole - ideal, axis=-1, kind="stable"), axis=-1, kind="stable")
    return (whole + (rank < missing)) * USAGE_STEP
