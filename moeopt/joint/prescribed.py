"""Prescribed waves that share one placement: layer functions of all waves at once, and a knapsack.

Which requests decode together is given, so the steps of every wave, its tokens and its cache are.
Layers share nothing but memory, and of memory only how many replicas there are: let ``F_l(r)`` be
the least ``Σ_w D_w T_wl`` of layer l under one placement with r additional replicas. Then the
makespan is at least ``min { Σ_l F_l(r_l) + attention(Σ r_l) : Σ r_l <= R }``, R the replicas that
fit beside the fullest wave's cache. Of every F_l(r) two sides are kept:

- from below, each wave at its own best (:mod:`moeopt.joint.layer_bound`), while heavy experts share
  their replicas (:mod:`moeopt.joint.prescribed_splits`); where resident replicas are charged, the
  mean step, too; for few experts the search over hosts (:mod:`moeopt.joint.prescribed_tree`), run
  for those r that the knapsack chooses, as long as the two sides differ;
- from above, annealed hosts (:mod:`moeopt.joint.prescribed_search`).

A plan takes the replicas that the knapsack chooses from above.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from moeopt.joint.prescribed_layers import CLOSE, MORE, PrescribedLayers
from moeopt.joint.prescribed_uniform import UniformLayers, uniform_numbers
from moeopt.problem import ProblemData
from moeopt.solution import Solution

#: Moves of the first annealing of a layer for each number of replicas. Each further one has MORE
#: times as many, at most so many for each expert and GPU.
_MOVES, _MOVES_LIMIT = 4_000, 4_000
#: Searches over hosts between two annealings.
_TURNS = 3


@dataclass(frozen=True)
class PrescribedBound:
    """What is proved of prescribed waves.

    Attributes
    ----------
    value : float
        Lower bound of the makespan in microseconds (expert-time units for ``unit``); infinite if no
        number of equal slots fits.
    solution : Solution or None
        The best plan; None if none was found.
    """

    value: float
    solution: Solution | None


def is_prescribed(data: ProblemData) -> bool:
    """Whether :func:`solve_prescribed` takes a problem: its waves are given."""
    return data.wave_requests is not None


def solve_prescribed(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = math.inf,
    enough: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
    on_plan: Callable[[Solution], None] = lambda solution: None,
) -> PrescribedBound:
    """Bound and plan prescribed waves (module docstring).

    Parameters
    ----------
    data : ProblemData
        See :func:`is_prescribed`; the waves fit the memory.
    enough : float
        The search ends as soon as the bound reaches this.
    """
    deadline = time.monotonic() + time_limit_s
    if data.uniform_slots and not len(uniform_numbers(data)):
        return PrescribedBound(math.inf, None)
    layers = UniformLayers(data, seed) if data.uniform_slots else PrescribedLayers(data, seed)
    moves_limit = _MOVES_LIMIT * data.experts * data.gpus

    def ended() -> bool:
        return time.monotonic() > deadline or stop()

    best_us, best, fitted_us = math.inf, None, math.inf
    value, _ = layers.bound()
    on_bound(value)
    moves = _MOVES
    layers.anneal(moves, ended)
    for turn in count():
        makespan_us, _ = layers.chosen(layers.replicas)
        if makespan_us < fitted_us * (1.0 - CLOSE):
            fitted_us, made = makespan_us, layers.plan()
            if made is not None and made[0] < best_us:
                best_us, best = made
                on_plan(best)
        value, chosen = layers.bound()
        on_bound(value)
        if value >= min(enough, best_us * (1.0 - CLOSE)) or ended():
            break
        if turn % (_TURNS + 1) < _TURNS and layers.tighten(chosen, ended):
            continue
        if moves < moves_limit:
            moves = min(MORE * moves, moves_limit)
            layers.anneal(moves, ended)
        elif not layers.tighten(chosen, ended):
            break
    return PrescribedBound(value, best)
