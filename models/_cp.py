"""Pieces that the native CP models share: hosting variables, symmetry, weights in integers.

CP-SAT knows integers only. Weights and times are rounded **down** to a grid, so that the integer
optimum never exceeds the true one: with ``p' = floor(P·p)`` and ``t' <= floor(S·t)``,
``Σ p' t' / (P·S) <= Σ p t``.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from moeopt.models import _parts as parts

from moeopt.problem import ProblemData

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Literals = dict[tuple[int, int, int], Any]

#: Bits of the integer weights and times; together below the 62 bits of CP-SAT's objective.
WEIGHT_BITS_UNIT = 40
WEIGHT_BITS = 34
TIME_BITS = 26


def add_hosting(model: cp_model.CpModel, data: ProblemData) -> Literals:
    """Literals x[l, e, g], slots and memory (a whole number of experts a GPU)."""
    x: Literals = {
        (l, e, g): model.new_bool_var(f"x[{l},{e},{g}]")
        for l in range(data.layers)
        for e in range(data.experts)
        for g in range(data.gpus)
    }
    if data.slots is not None:
        for l in range(data.layers):
            for g in range(data.gpus):
                model.add(sum(x[l, e, g] for e in range(data.experts)) <= data.slots)
    if data.free_mib is not None:
        for g, free in enumerate(data.free_mib.tolist()):
            fits = math.floor(Fraction(free) / Fraction(data.expert_mib))
            hosted = [x[l, e, g] for l in range(data.layers) for e in range(data.experts)]
            model.add(sum(hosted) <= fits)
    return x


def add_precedence(
    model: cp_model.CpModel, data: ProblemData, x: Literals, *, strict: bool
) -> None:
    """Interchangeable GPUs in the order of their smallest expert (as clauses)."""
    for l in parts.symmetric_layers(data):
        for g, h in parts.successors(data):
            for e in range(data.experts):
                earlier = [x[l, j, h] for j in range(e if strict else e + 1)]
                model.add_bool_or([x[l, e, g].negated(), *earlier])


def hinted(data: ProblemData, x: Literals, hosts: Any) -> list[tuple[Any, int]]:
    """Hints for x from hosts (L, E, G)."""
    return [(x[key], int(hosts[key])) for key in x]


def weight_bits(data: ProblemData) -> int:
    """Bits of the weights; the times of ``unit`` are small integers already."""
    return WEIGHT_BITS_UNIT if data.layer_time.form == "unit" else WEIGHT_BITS


def time_unit(data: ProblemData) -> Fraction:
    """The grid of layer times: 1 for ``unit``, else a power of two with TIME_BITS bits in range."""
    if data.layer_time.form == "unit":
        return Fraction(1)
    _, longest = parts.time_bounds(data)
    exponent = math.frexp(max(longest, 1e-300))[1] - TIME_BITS
    return Fraction(2) ** exponent


def floor_weight(data: ProblemData, weight: float) -> int:
    """P' = floor(p · 2**bits)."""
    return math.floor(Fraction(weight) * 2 ** weight_bits(data))


def floor_time(data: ProblemData, time: float) -> int:
    """T' = floor(t / unit)."""
    return math.floor(Fraction(time) / time_unit(data))


def floor_cost(data: ProblemData, act: float, tok: float, tokens: int) -> int:
    """Return floor((act + tok·n) / unit), the sum taken exactly."""
    return math.floor((Fraction(act) + Fraction(tok) * tokens) / time_unit(data))


def objective_bound(data: ProblemData, value: int) -> float:
    """Map an integer bound back to the objective, rounded down."""
    exact = Fraction(value) * time_unit(data) / 2 ** weight_bits(data)
    return float(np.nextafter(float(exact), -np.inf)) if float(exact) > exact else float(exact)


def time_range(data: ProblemData, size: int, tokens: int) -> tuple[int, int]:
    """Domain of a scenario's integer time."""
    if data.layer_time.form == "unit":
        return math.ceil(size / data.gpus), size
    return 0, floor_time(data, float(data.layer_time.of(size, tokens)) * (1 + 1e-12)) + 1
