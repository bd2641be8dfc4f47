"""Lower bound of one layer over waves that share its replicas: who is hosted how often.

An expert with k hosts has one that computes a k-th of its tokens, or more: in wave w it takes
``t_we(k) = f(1, w_e/k)`` at least. Alone, every wave may spend all additional replicas on the
experts that are heavy in it; together they share them. So with r additional replicas::

    F(r) >= min over k with Σ_e (k_e − 1) <= r of Σ_w D_w max(LB_w(r), max_e t_we(k_e))

LB_w(r) the bound of the wave alone. Instead of k, the waves' times T_w are enumerated, each LB_w or
some t_we(k): they need ``max_w |{k : t_we(k) > T_w}|`` additional replicas of expert e.

Where resident replicas are charged, E + r of them are in every wave: shared time of these.
"""

from __future__ import annotations

import numpy as np

from moeopt.joint.cost import Cost, shared_time, time_of
from moeopt.problem import FloatArray, IntArray

# A few hundred rounded operations of one sign: far below this, by which bounds are lowered.
_SAFE = 1.0 - 2.0**-36
#: Most combinations of the waves' times; waves beyond are bounded alone.
_COMBINATIONS = 20_000


def hosted_bounds(cost: Cost, tokens: FloatArray, gpus: int, most: int) -> FloatArray:
    """Bound waves that pay for all hosted replicas, with exactly 0, …, ``most`` additional ones.

    Parameters
    ----------
    tokens : float array, shape (W, E)

    Returns
    -------
    float array, shape (W, most + 1)
    """
    experts = tokens.shape[1]
    rows = [
        [shared_time(cost, experts + r, gpus, float(w.sum())) for r in range(most + 1)]
        for w in tokens
    ]
    return np.array(rows) * _SAFE


def splits_bounds(
    cost: Cost, tokens: FloatArray, steps: FloatArray, alone: FloatArray
) -> FloatArray:
    """Bound the sum over waves of steps times layer time (module docstring).

    Parameters
    ----------
    tokens : float array, shape (W, E)
        Of a step of each wave.
    steps : float array, shape (W,)
    alone : float array, shape (W, R)
        Bound of each wave with 0, …, R − 2 additional replicas, and with R − 1 or more.

    Returns
    -------
    float array, shape (R,)
    """
    least: FloatArray = steps @ alone
    choices = alone.shape[1]
    floor = alone.min(axis=1)
    whole = np.array([[time_of(cost, 1, n) for n in w] for w in tokens]) * _SAFE
    heavy = np.flatnonzero((whole > floor[:, None]).any(axis=0)).tolist()
    if not heavy:
        return least
    hosts = range(1, choices + 1)
    times = np.array([[[time_of(cost, 1, w[e] / k) for k in hosts] for e in heavy] for w in tokens])
    times *= _SAFE
    levels = [np.append(f, np.unique(t[t > f])) for f, t in zip(floor, times, strict=True)]
    needed = np.zeros((1, len(heavy)), dtype=np.int64)
    chosen = floor[None, :]
    for w in _most_to_gain(steps, levels):
        each: IntArray = (times[w] > levels[w][:, None, None]).sum(axis=2)
        needed = np.maximum(needed[:, None], each[None]).reshape(-1, len(heavy))
        chosen = np.repeat(chosen, len(levels[w]), axis=0)
        chosen[:, w] = np.tile(levels[w], len(chosen) // len(levels[w]))
    replicas = needed.sum(axis=1)
    for r in range(choices - 1):  # with more than are counted, everyone may have enough
        within = np.maximum(chosen[replicas <= r], alone[:, r]) @ steps
        least[r] = within.min()
    return least


def _most_to_gain(steps: FloatArray, levels: list[FloatArray]) -> list[int]:
    """Waves that are bounded together: those with most to gain, as many as can be enumerated."""
    gain = [float(d * (level[-1] - level[0])) for d, level in zip(steps, levels, strict=True)]
    together: list[int] = []
    combinations = 1
    for w in np.argsort(-np.array(gain), kind="stable").tolist():
        combinations *= len(levels[w])
        if together and combinations > _COMBINATIONS:
            break
        together.append(w)
    return together
