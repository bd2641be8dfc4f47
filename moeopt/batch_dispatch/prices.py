"""Lower bounds of a batch's layer time from whole-number prices: weak duality, exact.

Let ``Λ_g ≥ 0`` be the price of an activation and ``M_g ≥ 0`` that of a token on GPU g. A dispatch
gives GPU g the share ``y[e,g]`` of expert e, so ``A_g ≥ Σ_e y[e,g]`` and ``N_g = Σ_e n_e y[e,g]``,
whether tokens are whole or not, split or not. Hence

    Σ_g (Λ_g A_g + M_g N_g)  ≥  S = Σ_e min over the GPUs g of e of (Λ_g + n_e M_g).

Where no GPU ends after T, the left side is at most ``Σ_g`` of the largest ``Λ_g A + M_g N`` over
``f(A, N) ≤ T``, a closed formula in each form; T at equality is a lower bound. S is a sum of whole
numbers: nothing that produced the prices has to be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.problem import FloatArray, IntArray

#: Prices are whole numbers up to this; times tokens and experts they stay below 2**62.
_GRID_BITS = 61
#: More than the rounding of the formulas in double precision.
_SAFE = 1.0 - 1e-12


@dataclass(frozen=True)
class Prices:
    """Whole prices of an activation and of a token on each GPU, not below 0, shape (G,)."""

    activation: IntArray
    token: IntArray


def least_cost(batch: LayerBatch, prices: Prices) -> int:
    """S: what the experts pay at least."""
    if not len(batch.tokens):
        return 0
    each = prices.activation[batch.gpu] + batch.tokens[batch.owner] * prices.token[batch.gpu]
    return int(np.minimum.reduceat(each, batch.first[:-1]).sum())


def on_grid(batch: LayerBatch, activation: FloatArray, token: FloatArray) -> Prices:
    """Round prices (any scale, not negative) down to whole numbers that cannot overflow."""
    most = float(activation.max() * len(batch.tokens) + token.max() * batch.tokens.sum())
    # Σ_g of prices times activations or tokens is bounded by this as well.
    scale = 2.0 ** (_GRID_BITS - 2 - np.ceil(np.log2(most))) if most > 0 else 0.0
    # The sum over GPUs of prices must not overflow either.
    scale = min(scale, 2.0**50 / max(float(activation.max()), float(token.max()), 1e-300))
    return Prices(
        np.floor(activation * scale).astype(np.int64), np.floor(token * scale).astype(np.int64)
    )


def priced_bound(batch: LayerBatch, prices: Prices) -> float:
    """Lower bound in us of every dispatch with a mixed form, activations and tokens shared.

    It never exceeds the linear program's value, and attains it at optimal prices.
    """
    f = batch.layer_time
    a, b, c, beta = batch.cost.tolist()
    paid = least_cost(batch, prices)
    activation, token = prices.activation / b, prices.token / beta
    if f.form == "max":
        span = float(activation.sum() + token.sum())
        fixed = a * float(activation.sum()) + c * float(token.sum())
        return (paid + fixed) / span * _SAFE if span > 0 else 0.0
    span = float(np.maximum(activation, token).sum() if f.form == "sum" else 0.0)
    if f.form == "p2":
        span = float(np.hypot(activation, token).sum())
    return (a + paid / span) * _SAFE if span > 0 else 0.0


def tokens_needed(batch: LayerBatch, prices: Prices, activated: int) -> int:
    """Least largest number of tokens of a GPU where none activates more than ``activated``.

    With ``A_g ≤ K``: ``Σ_g M_g N_g ≥ S − K Σ_g Λ_g``, so some ``N_g`` is at least the quotient by
    ``Σ_g M_g``, rounded up. Whole numbers only.
    """
    size = int(prices.token.sum())
    if size == 0:
        return 0
    return max(
        0, -(-(least_cost(batch, prices) - activated * int(prices.activation.sum())) // size)
    )
