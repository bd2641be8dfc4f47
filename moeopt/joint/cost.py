"""f(A, N) and its inverses as compiled scalars: what every kernel of this package computes with.

A cost is a tuple ``(form, a, b, c, β)`` of plain numbers, see :func:`cost_of`.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from moeopt.problem import LayerTime

UNIT, SUM, MAX, P2 = 0, 1, 2, 3
_CODES = {"unit": UNIT, "sum": SUM, "max": MAX, "p2": P2}

Cost = tuple[int, float, float, float, float]

#: Tokens that a GPU takes where tokens cost nothing.
FREE = 1e300

_NEWTON = 3


def cost_of(layer_time: LayerTime) -> Cost:
    """Return the cost of a layer time; ``unit`` is one a replica, tokens free."""
    if layer_time.form == "unit":
        return (UNIT, 0.0, 1.0, 0.0, 0.0)
    return (
        _CODES[layer_time.form],
        layer_time.base_us,
        layer_time.expert_us,
        layer_time.token_base_us,
        layer_time.token_us,
    )


@njit(cache=True, nogil=True)
def time_of(cost: Any, activated: Any, tokens: Any) -> Any:
    """f(A, N)."""
    form, a, b, c, beta = cost
    if form == MAX:
        return max(a + b * activated, c + beta * tokens)
    if form == P2:
        return a + math.hypot(b * activated, beta * tokens)
    return a + b * activated + beta * tokens


@njit(cache=True, nogil=True)
def room_of(cost: Any, time: Any, activated: Any) -> Any:
    """cap(T, A): most tokens with f(A, N) <= T; negative where even none fit."""
    form, a, b, c, beta = cost
    over = time - a - b * activated
    if over < 0.0 or (form == MAX and time < c):
        return -1.0
    if beta == 0.0:
        return FREE
    if form == MAX:
        return (time - c) / beta
    if form == P2:
        return math.sqrt(over * (time - a + b * activated)) / beta
    return over / beta


@njit(cache=True, nogil=True)
def shared_time(cost: Any, replicas: int, gpus: int, tokens: Any) -> Any:
    """Least T at which ``gpus`` GPUs with ``replicas`` activations compute ``tokens`` together.

    cap(T, ·) is concave and non-increasing, so whole activations as equal as possible take most:
    ``Σ_i cap(T, c_i) >= tokens`` with c_i = floor or ceil of replicas/gpus. As a function of
    ``tokens`` it is convex: the inverse of an increasing concave function of T. For fixed
    ``replicas`` and ``gpus``, ``S·shared_time(tokens/S)`` does not decrease in S: S·f(A, N/S)
    does not.
    """
    form, a, b, c, beta = cost
    low = replicas // gpus
    larger = replicas - low * gpus
    most = low + (1 if larger > 0 else 0)
    if form == MAX:
        return max(a + b * most, c + beta * tokens / gpus)
    if form != P2:
        return max(a + b * most, a + (b * replicas + beta * tokens) / gpus)
    below, above = b * most, math.hypot(b * most, beta * tokens / gpus)
    if larger == 0 or b == 0.0:
        return a + above
    x, y, need = b * low, b * most, beta * tokens
    for _ in range(100):
        middle = 0.5 * (below + above)
        if middle <= below or middle >= above:
            break
        taken = (gpus - larger) * math.sqrt((middle - x) * (middle + x))
        taken += larger * math.sqrt(max(0.0, (middle - y) * (middle + y)))
        if taken >= need:
            above = middle
        else:
            below = middle
    return a + below


@njit(cache=True, nogil=True)
def tangent_of(cost: Any, replicas: int, gpus: int, tokens: Any) -> Any:
    """Return (constant, slope) of a tangent of :func:`shared_time`, for ``p2`` nearly there.

    It lies below the function everywhere, as that is convex in the tokens.
    """
    form, a, b, c, beta = cost
    low = replicas // gpus
    larger = replicas - low * gpus
    most = low + (1 if larger > 0 else 0)
    slope = beta / gpus
    if form == MAX:
        if a + b * most >= c + slope * tokens:
            return a + b * most, 0.0
        return c, slope
    if form != P2:
        if b * most >= (b * replicas + beta * tokens) / gpus:
            return a + b * most, 0.0
        return a + b * replicas / gpus, slope
    if beta == 0.0:
        return a + b * most, 0.0
    # Σ_i sqrt(T² − (b·c_i)²) = β·tokens by a few steps of Newton's method from even shares of the
    # replicas. Wherever they end, the tangent at the tokens computed within that T is one.
    x, y = b * low, b * most
    above = max(math.hypot(b * replicas / gpus, slope * tokens), y * (1.0 + 1e-9))
    if above <= 0.0:
        return a, 0.0
    for step in range(_NEWTON + 1):
        within_x = math.sqrt((above - x) * (above + x))
        within_y = math.sqrt((above - y) * (above + y))
        taken = (gpus - larger) * within_x
        rise = (gpus - larger) * above / within_x
        if larger > 0:
            taken += larger * within_y
            rise += larger * above / within_y
        if larger == 0 or step == _NEWTON:
            break
        above += (beta * tokens - taken) / rise
        if above <= y * (1.0 + 1e-9):
            return a + y, 0.0
    slope = beta / rise
    return a + above - slope * taken / beta, slope
