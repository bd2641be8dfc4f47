"""Joint, ordered compact formulation with the requests of a wave split by its length.

Equations (J1)-(J21): docs/formulations/joint_work.md. The columns ``n[c, w, d]`` say how many
requests of class c decode in wave w if it runs d steps; with them the product D·τ of a wave is
bounded by affine rows that hold for every plan: its base in every step, and the work and cache
reads of each of its requests in every step of the wave (not only in the steps it needs).
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import joint_compact as compact
from moeopt.models import joint_compact_ordered as base

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution
from moeopt.step_bound import affine_steps, waves_needed

PROBLEM = "joint"
KIND = "exact"
TIGHTER_THAN = ("joint_compact", "joint_compact_ordered")

kind = parts.kind_of_form
supports = base.supports
solution = base.solution


def _splits(data: ProblemData) -> list[tuple[int, int, int]]:
    """All (class, wave, length) in which the class may decode."""
    outputs = compact.classes(data).output_tokens.tolist()
    return [
        (c, w, d)
        for c, output in enumerate(outputs)
        for w in range(data.waves)
        for d in compact.lengths(data, w)
        if d >= output
    ]


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    waves, gpus = data.waves, data.gpus
    classes = len(compact.classes(data).names)
    run = [compact.lengths(data, w) for w in range(waves)]
    lengths = sum(len(r) for r in run)
    needed, splits, steps = waves_needed(data), _splits(data), affine_steps(data)
    work = sum(
        waves
        + (lengths if step.base_us > 0 else 0)
        + sum(1 for c, _, _ in splits if step.per_request_us[c] > 0)
        for step in steps
    )
    grown = parts.grown(
        base.size(data),
        rows=classes * waves + len(splits) + len(steps) * waves + len(needed),
        nonzeros=len(splits)
        + classes * waves * gpus
        + 2 * len(splits)
        + work
        + sum(d >= t for t, _ in needed for r in run for d in r),
    )
    return grown | {"columns": grown["columns"] + len(splits)}


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    classes = len(compact.classes(data).names)
    steps = affine_steps(data)
    m.K = pyo.RangeSet(0, len(steps) - 1)
    m.base_s = pyo.Param(
        m.K, initialize={k: step.base_us / compact.US_PER_S for k, step in enumerate(steps)}
    )
    m.request_s = pyo.Param(
        m.K,
        m.C,
        initialize={
            (k, c): step.per_request_us[c] / compact.US_PER_S
            for k, step in enumerate(steps)
            for c in range(classes)
        },
    )
    splits = _splits(data)
    of_wave: dict[int, list[tuple[int, int]]] = {w: [] for w in range(data.waves)}
    for c, w, d in splits:
        of_wave[w].append((c, d))
    needed = dict(waves_needed(data))
    m.SPLIT = pyo.Set(dimen=3, initialize=splits)
    m.OF_WAVE = pyo.Set(m.W, dimen=2, initialize=of_wave)
    m.LEVEL = pyo.Set(initialize=list(needed))
    m.needed = pyo.Param(m.LEVEL, initialize=needed)
    m.REACH = pyo.Set(
        m.LEVEL,
        dimen=2,
        initialize={
            t: [(w, d) for w in range(data.waves) for d in compact.lengths(data, w) if d >= t]
            for t in needed
        },
    )
    most = int(compact.classes(data).count.max())
    m.n = pyo.Var(m.SPLIT, bounds=(0, most), dense=False)

    def split_rule(m, c, w):
        return sum(m.n[c, w, d] for d in m.ENOUGH[c, w]) - sum(m.z[c, w, g] for g in m.G) == 0

    def chosen_rule(m, c, w, d):
        return m.n[c, w, d] - m.count[c] * m.v[w, d] <= 0

    def work_rule(m, w, k):
        return (
            sum(m.base_s[k] * m.steps[w, d] * m.v[w, d] for d in m.LONG[w])
            + sum(m.request_s[k, c] * m.steps[w, d] * m.n[c, w, d] for c, d in m.OF_WAVE[w])
            - m.cost[w]
            <= 0
        )

    def profile_rule(m, t):
        return sum(m.v[w, d] for w, d in m.REACH[t]) >= m.needed[t]

    m.split_row = pyo.Constraint(m.C, m.W, rule=split_rule)  # (J17)
    m.chosen_row = pyo.Constraint(m.SPLIT, rule=chosen_rule)  # (J18)
    m.work_row = pyo.Constraint(m.W, m.K, rule=work_rule)  # (J19)
    m.profile_row = pyo.Constraint(m.LEVEL, rule=profile_rule)  # (J20)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs and waves renamed to the order of the formulation."""
    columns = base.start(data, solution)
    total = columns["z"].sum(axis=2)
    first = 0
    chosen = []
    for w in range(data.waves):
        run = [0, *compact.lengths(data, w)]
        chosen.append(run[int(columns["v"][first : first + len(run)].argmax())])
        first += len(run)
    columns["n"] = np.array([total[c, w] * (chosen[w] == d) for c, w, d in _splits(data)])
    return columns
