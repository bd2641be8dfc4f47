"""A layer bound from whole activations: where every GPU has just as many experts as it must.

Let E charged experts be q for each of G GPUs, E = q·G, λ_k the tokens of the k lightest and w*
those of the heaviest, v the shared time (:func:`moeopt.joint.cost.shared_time`). A plan within T,
with any number r of additional replicas, is one of these:

1. *Some GPU is charged q + 2 replicas.* T >= f(q + 2, 0).
2. *Every GPU is charged q.* Nobody is split. Of the jG + 1 heaviest some GPU has j + 1, at least
   the lightest of these, and q − j − 1 others, at least the lightest of all.
3. *h >= 1 GPUs are charged q + 1, the others at most q.* Then T >= f(q, w* + λ_(q−1)) and T >=
   f(q + 1, λ_(q−1)); or, for some h, T is at least one of v(h(q + 1), h, λ_((q−1)h+2)),
   v(h(q + 1) + q, h + 1, w* + λ_((q−1)h+q)) and v(h(q + 1), h, w* + λ_((q−1)h)). The proof is in
   docs/front.md: at most 2r replicas are pieces of split experts, all others are whole.

The bound does not decrease in the tokens, and S times it, for tokens / S, not in S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import Cost, shared_time, time_of
from moeopt.problem import FloatArray, IntArray

# Sums of a few hundred terms, and a bisection: far below this.
_SAFE = 1.0 - 2.0**-36


@njit(cache=True, nogil=True)
def _uneven(cost: Any, light: Any, heaviest: float, q: int, gpus: int) -> Any:
    """Least time of case 3; ``light[k]``: tokens of the k lightest."""
    best = max(
        time_of(cost, q, heaviest + light[q - 1]), time_of(cost, q + 1, light[q - 1])
    )  # the heaviest expert is whole
    for h in range(1, gpus + 1):
        best = min(best, shared_time(cost, h * (q + 1), h, light[(q - 1) * h + 2]))
        best = min(best, shared_time(cost, h * (q + 1), h, heaviest + light[(q - 1) * h]))
        if h < gpus:
            tokens = heaviest + light[(q - 1) * h + q]
            best = min(best, shared_time(cost, h * (q + 1) + q, h + 1, tokens))
    return best


def whole_bound(cost: Cost, tokens: FloatArray, charged: IntArray, gpus: int) -> float:
    """Bound the time of a layer, any replicas allowed; 0 where experts are not a multiple of GPUs.

    Parameters
    ----------
    tokens : float array, shape (E,)
    charged : int array, shape (E,)
        1 for each expert of which surely a replica is charged.
    """
    heavy = -np.sort(-tokens[charged > 0])
    q, more = divmod(len(heavy), gpus)
    if more or not q:
        return 0.0
    light = np.concatenate(([0.0], np.cumsum(heavy[::-1])))
    before = np.concatenate(([0.0], np.cumsum(heavy)))
    j = np.arange(q)
    together = before[j * gpus + 1] - before[j * (gpus - 1)]
    even = time_of(cost, q, float((together + light[q - 1 - j]).max()))
    if gpus == 1:
        return float(even * _SAFE)
    uneven = _uneven(cost, light, float(heavy[0]), q, gpus)
    return float(min(time_of(cost, q + 2, 0.0), even, uneven) * _SAFE)
