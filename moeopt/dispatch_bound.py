"""A lower bound of a scenario's layer time under any placement at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moeopt.dispatch_flow import scalar_form
from moeopt.problem import FloatArray, LayerTime


def time_lower_bound(
    layer_time: LayerTime, tokens: Sequence[float], gpus: int, whole: bool = False
) -> float:
    """Lower bound of T for a scenario under every placement and every replication.

    Parameters
    ----------
    tokens : tokens of each expert; experts without tokens are not activated
    gpus : int
    whole : bool
        Whether tokens are indivisible (then the bound is rounded up to a value that f can take).

    Notes
    -----
    Suppose T is attained. Let cap(T, A) be the most tokens a GPU with A activated replicas takes
    within T.

    1. A replica on a GPU takes at most cap(T, 1) tokens, because f does not decrease in A. An
       expert with n > 0 tokens therefore activates at least ``max(1, ceil(n / cap(T, 1)))``
       replicas, on distinct GPUs: at most G. Let p be the sum of these numbers: all GPUs together
       activate at least p replicas.
    2. With activations A_1..A_G, ΣA_g ≥ p, the GPUs take Σ_g cap(T, A_g) ≥ Σn tokens. Real-valued
       cap(T, ·) is non-increasing and concave on the whole numbers (−inf where nothing fits):
       affine for ``sum``, a quarter of an ellipse for ``p2``, a constant and then −inf for
       ``max`` and ``unit``. So the sum is largest for ΣA_g = p, split as evenly as whole numbers
       allow.

    Any T that violates 1 or 2 is a lower bound. Both are monotone in T: bisection ends with a T
    that violates (lowered by 1e-12, more than the rounding of cap) next to one that does not.
    With whole tokens T is one of the values f(A, n) of whole numbers, and the least of these that
    is not below the bound is a bound too.
    """
    n = np.array([t for t in tokens if t > 0], dtype=np.float64)
    f = scalar_form(layer_time)
    if not n.size:
        return f(0, 0)
    total = math.fsum(n)
    fewest = -(-n.size // gpus)  # some GPU activates this many
    if not layer_time.counts_tokens:
        return f(fewest, 0)
    low = max(f(fewest, 0), f(0, total / gpus), f(1, float(n.max()) / gpus))
    if _possible(layer_time, n, total, gpus, low):
        high = low
    else:
        high = f(fewest, total)
        while high - low > 1e-13 * high:
            middle = (low + high) / 2
            if _possible(layer_time, n, total, gpus, middle):
                high = middle
            else:
                low = middle
    bound = low * (1 - 1e-12)
    if not whole:
        return bound
    return max(bound, _next_value(layer_time, n, bound))


def _possible(layer_time: LayerTime, n: FloatArray, total: float, gpus: int, time: float) -> bool:
    """Whether conditions 1 and 2 hold at ``time``."""
    one = _capacity(layer_time, time, 1)
    if not one > 0:
        return False
    replicas = np.maximum(1.0, np.ceil(n / one * (1 - 1e-13)))
    if replicas.max() > gpus:
        return False
    each, more = divmod(int(replicas.sum()), gpus)
    room = (gpus - more) * _capacity(layer_time, time, each)
    if more:
        room += more * _capacity(layer_time, time, each + 1)
    return room >= total


def _capacity(layer_time: LayerTime, time: float, activated: int) -> float:
    """Real-valued cap(time, activated)."""
    beta = layer_time.token_us
    over = time - layer_time.base_us
    fixed = layer_time.expert_us * activated
    if over < fixed:
        return -math.inf
    if layer_time.form == "sum":
        return (over - fixed) / beta
    if layer_time.form == "p2":
        return math.sqrt((over - fixed) * (over + fixed)) / beta
    return (
        (time - layer_time.token_base_us) / beta if time >= layer_time.token_base_us else -math.inf
    )


def _next_value(layer_time: LayerTime, n: FloatArray, bound: float) -> float:
    """Least f(A, N) ≥ ``bound`` over whole 1 ≤ A ≤ experts and A ≤ N ≤ tokens."""
    activated = np.arange(1.0, n.size + 1)
    low, high = activated.copy(), np.full(n.size, math.fsum(n))
    while (low < high).any():
        middle = np.floor((low + high) / 2)
        enough = layer_time.of(activated, middle) >= bound
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    values = layer_time.of(activated, high)
    return float(values[values >= bound].min(initial=math.inf))
