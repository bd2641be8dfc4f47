"""Shares and prices of the linear program of a batch, by smoothing, compiled.

Minimise ``max_g f(A_g, N_g)`` over shares ``y``. With ``η`` growing, the soft maximum
``Σ_g exp(η f)`` (for ``max``: both terms of f apart) is decreased one expert at a time: share goes
from its dearest replica to its cheapest, the cost of a replica being the derivative
``Λ_g + n_e M_g``. These derivatives are prices in the sense of :mod:`prices
<moeopt.batch_dispatch.prices>`; the best ones seen are kept. Neither shares nor prices are trusted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.dispatch_time import FORMS, gpu_time
from moeopt.problem import FloatArray

#: η times the largest time: first value, factor from stage to stage, stages, sweeps in each.
_FIRST, _FACTOR, _STAGES, _SWEEPS = 30.0, 1.6, 16, 10
#: Newton steps of a shift, and a difference of logarithms that is level.
_NEWTON, _LEVEL = 5, 0.02
#: A bound this close to the shares' time ends the descent.
CLOSE = 2e-4


@njit(cache=True)
def _exp(x: float) -> float:
    """Finite: what a step too far costs is compared, not trusted."""
    return math.exp(min(x, 600.0))


@njit(cache=True)
def _prices_of(
    form: int, cost: Any, eta: float, top: float, activated: float, tokens: float
) -> tuple[float, float]:
    """Derivatives of the soft maximum, up to a common factor exp(η·top)."""
    if form == 2:
        return (
            cost[1] * _exp(eta * (cost[0] + cost[1] * activated - top)),
            cost[3] * _exp(eta * (cost[2] + cost[3] * tokens - top)),
        )
    if form == 1:
        weight = _exp(eta * (cost[0] + cost[1] * activated + cost[3] * tokens - top))
        return cost[1] * weight, cost[3] * weight
    x, y = cost[1] * activated, cost[3] * tokens
    radius = math.hypot(x, y)
    if radius == 0.0:
        return 0.0, 0.0
    weight = _exp(eta * (cost[0] + radius - top)) / radius
    return cost[1] * x * weight, cost[3] * y * weight


@njit(cache=True)
def _log_cost(
    form: int, cost: Any, eta: float, top: float, n: float, activated: float, tokens: float
) -> tuple[float, float]:
    """Logarithm of ``Λ + n M`` and how fast it rises with the share."""
    x, y = _prices_of(form, cost, eta, top, activated, tokens)
    price = x + n * y
    if form == 2:
        rate = (cost[1] * x + cost[3] * n * n * y) / price if price > 0.0 else cost[1]
    elif form == 1:
        rate = cost[1] + cost[3] * n
    else:
        u, v = cost[1] * activated, cost[3] * tokens
        radius = math.hypot(u, v)
        rate = (cost[1] * u + cost[3] * n * v) / radius if radius > 0.0 else cost[1]
    return math.log(max(price, 1e-300)), eta * max(rate, 1e-12 * cost[1])


@njit(cache=True)
def _value(first: Any, gpu: Any, tokens: Any, form: int, cost: Any, lam: Any, mu: Any) -> float:
    """Bound of prices in floating point: only to choose among prices."""
    paid = 0.0
    for e in range(len(tokens)):
        least = math.inf
        for r in range(first[e], first[e + 1]):
            least = min(least, lam[gpu[r]] + tokens[e] * mu[gpu[r]])
        paid += least
    span = 0.0
    if form == 2:
        for g in range(len(lam)):
            span += lam[g] / cost[1] + mu[g] / cost[3]
            paid += cost[0] * lam[g] / cost[1] + cost[2] * mu[g] / cost[3]
        return paid / span if span > 0 else 0.0
    for g in range(len(lam)):
        x, y = lam[g] / cost[1], mu[g] / cost[3]
        span += max(x, y) if form == 1 else math.hypot(x, y)
    return cost[0] + paid / span if span > 0 else 0.0


@njit(cache=True)
def _descend(
    first: Any,
    gpu: Any,
    tokens: Any,
    gpus: int,
    form: int,
    cost: Any,
    share: Any,
    best_lam: Any,
    best_mu: Any,
) -> tuple[float, float]:
    """Improve shares (R,); fill the best prices (G,); return (time of shares, bound)."""
    experts = len(tokens)
    activated, load = np.zeros(gpus), np.zeros(gpus)
    lam, mu = np.zeros(gpus), np.zeros(gpus)
    kept = share.copy()
    least, bound = math.inf, -math.inf
    eta_top = _FIRST
    scale = 0.0
    for _ in range(_STAGES):
        for sweep in range(_SWEEPS):
            # Afresh: sums of differences drift.
            activated[:] = 0.0
            load[:] = 0.0
            for e in range(experts):
                for r in range(first[e], first[e + 1]):
                    activated[gpu[r]] += share[r]
                    load[gpu[r]] += tokens[e] * share[r]
            top = -math.inf
            for g in range(gpus):
                time = gpu_time(form, cost, activated[g], load[g])
                top = max(top, time)
            if top < least:
                least = top
                kept[:] = share
            if scale == 0.0:
                scale = top - gpu_time(form, cost, 0.0, 0.0)
                if scale <= 0.0:
                    scale = 1.0
            eta = eta_top / scale
            for g in range(gpus):
                lam[g], mu[g] = _prices_of(form, cost, eta, top, activated[g], load[g])
            if sweep % 3 == 0 or sweep == _SWEEPS - 1:
                found = _value(first, gpu, tokens, form, cost, lam, mu)
                if found > bound:
                    bound = found
                    best_lam[:] = lam
                    best_mu[:] = mu
                if least - bound <= CLOSE * scale:
                    share[:] = kept
                    return least, bound
            for e in range(experts):
                if first[e + 1] - first[e] > 1:
                    n = float(tokens[e])
                    dear, cheap = -1, -1
                    dear_cost, cheap_cost = -1.0, math.inf
                    for r in range(first[e], first[e + 1]):
                        price = lam[gpu[r]] + n * mu[gpu[r]]
                        if share[r] > 0.0 and price > dear_cost:
                            dear, dear_cost = r, price
                        if price < cheap_cost:
                            cheap, cheap_cost = r, price
                    if dear < 0 or dear == cheap or dear_cost <= cheap_cost * (1 + 1e-9):
                        continue
                    _shift(form, cost, eta, top, n, dear, cheap, gpu, share, activated, load)
                    for g in (gpu[dear], gpu[cheap]):
                        lam[g], mu[g] = _prices_of(form, cost, eta, top, activated[g], load[g])
        eta_top *= _FACTOR
    share[:] = kept
    return least, bound


@njit(cache=True)
def _shift(
    form: int,
    cost: Any,
    eta: float,
    top: float,
    n: float,
    dear: int,
    cheap: int,
    gpu: Any,
    share: Any,
    activated: Any,
    load: Any,
) -> None:
    """Move the part of a share that makes both replicas cost the same: Newton on logarithms."""
    g, h = gpu[dear], gpu[cheap]
    low, high, part = 0.0, share[dear], 0.0
    for step in range(_NEWTON + 1):
        x, slope = _log_cost(form, cost, eta, top, n, activated[g] - part, load[g] - part * n)
        y, rise = _log_cost(form, cost, eta, top, n, activated[h] + part, load[h] + part * n)
        if abs(x - y) < _LEVEL:
            break
        if x > y:
            low = part
            if part == high:
                break
        else:
            high = part
        if step == _NEWTON:
            part = low  # too far is worse than not far enough
            break
        part += (x - y) / (slope + rise)
        if part >= high:
            part = high if step == 0 else (low + high) / 2.0
        elif part <= low:
            part = (low + high) / 2.0
    share[dear] = share[dear] - part if part < share[dear] else 0.0
    share[cheap] += part
    activated[g] -= part
    load[g] -= part * n
    activated[h] += part
    load[h] += part * n


def descend(
    batch: LayerBatch, share: FloatArray, cost: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    """Solve the linear program of a mixed form, nearly.

    Parameters
    ----------
    batch : LayerBatch
    share : float array, shape (R,)
        Where to begin; sums to 1 for each expert.
    cost : float array, shape (4,), optional
        Other coefficients of the same form.

    Returns
    -------
    share : float array, shape (R,)
    activation, token : float arrays, shape (G,)
        Prices of any scale, not below 0.
    time : float
        ``max_g f`` of the shares, activations shared as well.
    """
    share = share.copy()
    activation, token = np.zeros(batch.gpus), np.zeros(batch.gpus)
    time, _ = _descend(
        batch.first,
        batch.gpu,
        batch.tokens,
        batch.gpus,
        FORMS[batch.layer_time.form],
        batch.cost if cost is None else cost,
        share,
        activation,
        token,
    )
    return share, activation, token, float(time)
