"""Joint, compact formulation with the symmetry of GPUs and waves broken.

Equations (J1)-(J16), (J21): docs/formulations/joint_compact_ordered.md. Interchangeable GPUs stand
in the order of their smallest expert of the first layer, waves in the order of their lengths.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import joint_compact as base

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "joint"
KIND = "exact"
TIGHTER_THAN = ("joint_compact",)

kind = parts.kind_of_form
supports = base.supports
solution = base.solution


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = parts.order_size(data, strict=False)
    pairs = _wave_pairs(data)
    return parts.grown(
        base.size(data),
        rows=rows + len(pairs),
        nonzeros=nonzeros + sum(len(base.lengths(data, w)) for pair in pairs for w in pair),
    )


def _wave_pairs(data: ProblemData) -> list[tuple[int, int]]:
    """Pairs of neighbouring waves that may be exchanged: none where each has its own requests."""
    if data.wave_requests is not None:
        return []
    if data.wave_steps is None:
        return [(w, w + 1) for w in range(data.waves - 1)]
    steps = data.wave_steps
    return [(w, w + 1) for w in range(data.waves - 1) if steps[w] == steps[w + 1]]


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    parts.add_order(m, data, strict=False)  # (J15)
    m.LATER = pyo.Set(dimen=2, initialize=_wave_pairs(data))
    m.LONG = pyo.Set(m.W, initialize={w: base.lengths(data, w) for w in range(data.waves)})

    def wave_rule(m, w, later):
        return (
            sum(m.steps[later, d] * m.v[later, d] for d in m.LONG[later])
            - sum(m.steps[w, d] * m.v[w, d] for d in m.LONG[w])
            <= 0
        )

    m.wave_row = pyo.Constraint(m.LATER, rule=wave_rule)  # (J16)
    return m


def in_order(data: ProblemData, solution: Solution) -> Solution:
    """Rename GPUs and waves of a plan so that it satisfies (J15) and (J16)."""
    requests = base.classes(data)
    hosts = solution.hosts_array(data.gpus)
    gpus = parts.gpu_order(data, hosts[0])
    z = solution.requests_array(list(requests.names), data.gpus)
    waves = list(range(z.shape[1]))
    if data.wave_steps is None and data.wave_requests is None:
        longest = (requests.output_tokens[:, None] * (z.sum(axis=2) > 0)).max(axis=0)
        waves.sort(key=lambda w: -int(longest[w]))
    dispatch = None
    if solution.dispatch is not None:
        dispatch = np.zeros((z.shape[1], data.layers, data.experts, data.gpus))
        for l, layer in enumerate(solution.dispatch):
            for w, tokens_of in enumerate(layer):
                for e, g, tokens in tokens_of:
                    dispatch[w, l, int(e), int(g)] = tokens
        dispatch = dispatch[waves][..., gpus]
    return Solution.from_arrays(
        data,
        hosts[..., gpus],
        requests=z[:, waves][..., gpus],
        dispatch=dispatch,
        objective=solution.objective,
    )


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs and waves renamed to the order of the formulation."""
    return base.start(data, in_order(data, solution))
