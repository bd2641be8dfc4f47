"""f(A, N) for compiled code: the layer time of one GPU, by form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.problem import FloatArray, LayerTime

FORMS = {"unit": 0, "sum": 1, "max": 2, "p2": 3}


def cost_array(layer_time: LayerTime) -> FloatArray:
    """Return the coefficients as :func:`gpu_time` takes them."""
    f = layer_time
    return np.array([f.base_us, f.expert_us, f.token_base_us, f.token_us])


@njit(cache=True)
def gpu_time(form: int, cost: Any, activated: float, tokens: float) -> float:
    """f(A, N); ``cost`` = base, expert, token base, token (us)."""
    if form == 0:
        return activated
    if form == 1:
        return cost[0] + cost[1] * activated + cost[3] * tokens
    if form == 2:
        return max(cost[0] + cost[1] * activated, cost[2] + cost[3] * tokens)
    return cost[0] + math.hypot(cost[1] * activated, cost[3] * tokens)
