"""Who shares a GPU with whom: parts of the placement formulations in pairs, triples, quadruples.

A placement without replicas is a partition of the experts into groups. Where groups are full
(dummy experts fill spare slots), sums over "one more member" are known, and the time of a scenario
is a function of the partition alone: no GPU index, no GPU symmetry. Derivations and proofs:
docs/formulations/placement_pairs.md, placement_triangles.md, placement_patterns3.md and
placement_patterns.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

#: Larger programs are refused: building them would take the memory of the machine.
MOST_NONZEROS = 25_000_000

Members = tuple[int, ...]


def group_size(data: ProblemData) -> int:
    """Members of a full group.

    No GPU need stay empty (an expert moved to an empty GPU never costs time), so no group needs
    more than E − G + 1 members.
    """
    assert data.slots is not None
    return min(data.slots, max(1, data.experts - data.gpus + 1))


def padded(data: ProblemData) -> int:
    """Experts and dummies: E, and dummies in the slots that are left over."""
    return data.gpus * group_size(data)


def refusal(data: ProblemData) -> str | None:
    """Say why pairs cannot describe the instance, or None."""
    if data.layer_time.form != "unit":
        return f"layer time {data.layer_time.form}: times of groups are known for unit only"
    if data.slots is None:
        return "no slots are given: groups have no common size"
    if data.slots * data.gpus < data.experts:
        return "the slots do not hold all experts"
    if data.free_mib is not None and memory_binds(data):
        return "memory limits a GPU before its slots do: groups have no common size"
    return None


def too_large(nonzeros: int) -> str | None:
    """Say that a program is too large, or None."""
    if nonzeros <= MOST_NONZEROS:
        return None
    return f"its {nonzeros:,} nonzeros are too many to build (more than {MOST_NONZEROS:,})"


def memory_binds(data: ProblemData) -> bool:
    """Whether a GPU lacks the memory for full slots in every layer (sizes are whole bytes)."""
    assert data.free_mib is not None
    assert data.slots is not None
    full = data.layers * min(data.slots, data.experts) * data.expert_mib
    return bool((data.free_mib < full).any())


# -- index sets and counting rows ------------------------------------------------------------------


def add_pairs(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Pairs ``z[l, i, j]``, i < j: i and j share a GPU; every expert has c − 1 mates (N1)."""
    n, c = padded(data), group_size(data)
    m.L = pyo.RangeSet(0, data.layers - 1)
    m.I = pyo.RangeSet(0, n - 1)
    m.PAIR = pyo.Set(dimen=2, initialize=_subsets(n, 2))
    m.OF_ONE = pyo.Set(m.I, dimen=2, initialize=_supersets(n, 1))
    m.z = pyo.Var(m.L, m.PAIR, domain=pyo.Binary, dense=False)

    def mates_rule(m, l, i):
        return sum(m.z[l, a, b] for a, b in m.OF_ONE[i]) == c - 1

    m.mates_row = pyo.Constraint(m.L, m.I, rule=mates_rule)


def add_triples(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Triples ``t[l, i, j, k]``: all three share a GPU; counted from the pairs (N2)."""
    n, c = padded(data), group_size(data)
    m.TRIPLE = pyo.Set(dimen=3, initialize=_subsets(n, 3))
    m.OF_TWO = pyo.Set(m.PAIR, dimen=3, initialize=_supersets(n, 2))
    m.t = pyo.Var(m.L, m.TRIPLE, domain=pyo.Binary, dense=False)

    def third_rule(m, l, i, j):
        return sum(m.t[l, a, b, d] for a, b, d in m.OF_TWO[i, j]) - (c - 2) * m.z[l, i, j] == 0

    m.third_row = pyo.Constraint(m.L, m.PAIR, rule=third_rule)


def add_quadruples(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Quadruples ``q`` (all four share a GPU) and two pairs apart ``w``, both counted (N3), (N4).

    ``w[l, a, b, d, e, h]``: the quadruple a < b < d < e is split into two pairs on two GPUs, a
    with b (h = 0), d (h = 1) or e (h = 2).
    """
    n, c = padded(data), group_size(data)
    quads = _subsets(n, 4)
    m.QUAD = pyo.Set(dimen=4, initialize=quads)
    m.H = pyo.RangeSet(0, 2)
    m.OF_THREE = pyo.Set(m.TRIPLE, dimen=4, initialize=_supersets(n, 3))
    splits = _splits_by_pair_and_third(n, quads)
    m.APART = pyo.Set(dimen=3, initialize=list(splits))
    m.SPLIT = pyo.Set(m.APART, dimen=5, initialize=splits)
    m.q = pyo.Var(m.L, m.QUAD, domain=pyo.Binary, dense=False)
    m.w = pyo.Var(m.L, m.QUAD, m.H, domain=pyo.Binary, dense=False)
    # A triple is wanted by a pair and a third expert.
    m.SORTED = pyo.Set(
        m.APART, dimen=3, initialize={apart: [tuple(sorted(apart))] for apart in splits}
    )

    def fourth_rule(m, l, i, j, k):
        return (
            sum(m.q[l, a, b, d, e] for a, b, d, e in m.OF_THREE[i, j, k])
            - (c - 3) * m.t[l, i, j, k]
            == 0
        )

    def split_rule(m, l, i, j, k):
        return (
            sum(m.w[l, a, b, d, e, h] for a, b, d, e, h in m.SPLIT[i, j, k])
            - (c - 1) * m.z[l, i, j]
            + (c - 1) * sum(m.t[l, a, b, d] for a, b, d in m.SORTED[i, j, k])
            == 0
        )

    m.fourth_row = pyo.Constraint(m.L, m.TRIPLE, rule=fourth_rule)
    m.split_row = pyo.Constraint(m.L, m.APART, rule=split_rule)


def _subsets(n: int, size: int) -> list[Members]:
    return list(itertools.combinations(range(n), size))


def _supersets(n: int, size: int) -> dict[int | Members, list[Members]]:
    """Sets with one more member, for each set of ``size`` experts (a bare number for size 1)."""
    above: dict[Members, list[Members]] = {s: [] for s in _subsets(n, size)}
    for superset in itertools.combinations(range(n), size + 1):
        for left_out in range(size + 1):
            above[superset[:left_out] + superset[left_out + 1 :]].append(superset)
    return {s[0] if size == 1 else s: found for s, found in above.items()}


def _splits_by_pair_and_third(
    n: int, quads: list[Members]
) -> dict[tuple[int, int, int], list[Members]]:
    """For a pair and a third expert: the splits that put the pair on one GPU, the third apart."""
    found: dict[tuple[int, int, int], list[Members]] = {
        (i, j, k): [] for i, j in _subsets(n, 2) for k in range(n) if k != i and k != j
    }
    for a, b, d, e in quads:
        for h, (i, j, k, l) in enumerate(((a, b, d, e), (a, d, b, e), (a, e, b, d))):
            split = (a, b, d, e, h)
            found[i, j, k].append(split)
            found[i, j, l].append(split)
            found[k, l, i].append(split)
            found[k, l, j].append(split)
    return found


# -- local patterns --------------------------------------------------------------------------------


def add_triangles(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Sharing a GPU is transitive (R1)."""
    m.TRIPLE = pyo.Set(dimen=3, initialize=_subsets(padded(data), 3))

    def first_rule(m, l, i, j, k):
        return m.z[l, i, j] + m.z[l, i, k] - m.z[l, j, k] <= 1

    def second_rule(m, l, i, j, k):
        return m.z[l, i, j] + m.z[l, j, k] - m.z[l, i, k] <= 1

    def third_rule(m, l, i, j, k):
        return m.z[l, i, k] + m.z[l, j, k] - m.z[l, i, j] <= 1

    m.triangle_first_row = pyo.Constraint(m.L, m.TRIPLE, rule=first_rule)
    m.triangle_second_row = pyo.Constraint(m.L, m.TRIPLE, rule=second_rule)
    m.triangle_third_row = pyo.Constraint(m.L, m.TRIPLE, rule=third_rule)


def add_triple_patterns(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Each of the 5 partitions of a triple has a probability of at least 0 (R2).

    With fewer than three GPUs, three experts are never all apart.
    """

    def first_rule(m, l, i, j, k):
        return m.z[l, i, j] - m.t[l, i, j, k] >= 0

    def second_rule(m, l, i, j, k):
        return m.z[l, i, k] - m.t[l, i, j, k] >= 0

    def third_rule(m, l, i, j, k):
        return m.z[l, j, k] - m.t[l, i, j, k] >= 0

    def distinct(m, l, i, j, k):
        return 1 - m.z[l, i, j] - m.z[l, i, k] - m.z[l, j, k] + 2 * m.t[l, i, j, k]

    m.pair_first_row = pyo.Constraint(m.L, m.TRIPLE, rule=first_rule)
    m.pair_second_row = pyo.Constraint(m.L, m.TRIPLE, rule=second_rule)
    m.pair_third_row = pyo.Constraint(m.L, m.TRIPLE, rule=third_rule)
    m.distinct_row = pyo.Constraint(m.L, m.TRIPLE, rule=_sign(distinct, data.gpus >= 3))


def add_quadruple_patterns(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Each of the 15 partitions of a quadruple has a probability of at least 0 (R3).

    It is 0 where the partition has more groups than there are GPUs.
    """

    def triple_rule(first, second, third):
        def rule(m, l, *quad):
            a, b, d = quad[first], quad[second], quad[third]
            return m.t[l, a, b, d] - m.q[(l, *quad)] >= 0

        return rule

    def pair_rule(i, j, split):
        others = [k for k in range(4) if k not in (i, j)]

        def rule(m, l, *quad):
            with_first, with_second = (
                m.t[(l, *(quad[k] for k in sorted((i, j, other))))] for other in others
            )
            return (
                m.z[l, quad[i], quad[j]]
                - with_first
                - with_second
                + m.q[(l, *quad)]
                - m.w[(l, *quad, split)]
            )

        return rule

    def distinct(m, l, a, b, d, e):
        return (
            1
            - (m.z[l, a, b] + m.z[l, a, d] + m.z[l, a, e])
            - (m.z[l, b, d] + m.z[l, b, e] + m.z[l, d, e])
            + 2 * (m.t[l, a, b, d] + m.t[l, a, b, e] + m.t[l, a, d, e] + m.t[l, b, d, e])
            - 3 * m.q[l, a, b, d, e]
            + sum(m.w[l, a, b, d, e, h] for h in m.H)
        )

    for place, triple in enumerate(itertools.combinations(range(4), 3)):
        rule = triple_rule(*triple)
        m.add_component(f"triple_{place}_row", pyo.Constraint(m.L, m.QUAD, rule=rule))
    for split, pairs in enumerate((((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))):
        for i, j in pairs:
            rule = _sign(pair_rule(i, j, split), data.gpus >= 3)
            m.add_component(f"pair_{i}{j}_row", pyo.Constraint(m.L, m.QUAD, rule=rule))
    m.distinct_row = pyo.Constraint(m.L, m.QUAD, rule=_sign(distinct, data.gpus >= 4))


def _sign(probability: Callable[..., Any], possible: bool) -> Callable[..., Any]:
    """Rule that a probability is at least 0, or 0 where the pattern is impossible."""
    if possible:
        return lambda m, *index: probability(m, *index) >= 0
    return lambda m, *index: probability(m, *index) == 0


# -- plans -----------------------------------------------------------------------------------------


def hosts_from_pairs(data: ProblemData, z: FloatArray) -> npt.NDArray[np.bool_]:
    """Groups from co-location values, shape (L, pairs) → (L, E, G).

    Each GPU takes the first expert left over and the c − 1 others that share most with the group
    so far. Where z is a partition into full groups that is the partition; else a rounding.
    """
    n, c = padded(data), group_size(data)
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    upper = np.triu_indices(n, 1)
    for l in range(data.layers):
        together = np.zeros((n, n))
        together[upper] = z[l]
        together += together.T
        left = np.ones(n, dtype=bool)
        for g in range(data.gpus):
            members = [int(left.argmax())]
            left[members[0]] = False
            while len(members) < c:
                affinity = np.where(left, together[members].sum(axis=0), -1.0)
                members.append(int(affinity.argmax()))
                left[members[-1]] = False
            hosts[l, [e for e in members if e < data.experts], g] = True
    return hosts


def pairs_from(data: ProblemData, solution: Solution) -> FloatArray | None:
    """Values of z for a plan, dummies filling it up; None where a group is larger than c."""
    n, c = padded(data), group_size(data)
    hosts = solution.hosts_array(data.gpus)
    if (hosts.sum(axis=1) > c).any():
        return None
    upper = np.triu_indices(n, 1)
    z = np.zeros((data.layers, math.comb(n, 2)))
    for l in range(data.layers):
        spare = c - hosts[l].sum(axis=0)
        group = np.concatenate([hosts[l].argmax(axis=1), np.repeat(np.arange(data.gpus), spare)])
        z[l] = group[upper[0]] == group[upper[1]]
    return z
