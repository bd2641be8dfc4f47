"""Times of scenarios in pairs, triples and quadruples of experts that share a GPU.

A scenario of at most ``level`` experts has a time that is linear in these quantities and goes into
the objective; a larger one has a column T with valid rows. Derivations:
docs/formulations/placement_patterns.md.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo
from moeopt.models._patterns import Members

from moeopt.problem import ProblemData, Scenarios

IntArray = npt.NDArray[np.int64]
#: (layer, number)
Scenario = tuple[int, int]

#: Scenarios with more experts have star rows only: subsets and facets become too many.
LARGEST_FACETED = 8


# -- the time of a group pattern -------------------------------------------------------------------


@cache
def shape_points(k: int, level: int) -> tuple[tuple[int, ...], ...]:
    """Counts of co-located subsets and the time, for each shape of k experts on GPUs.

    Returns
    -------
    tuple of (pairs, triples, [quadruples, two pairs on two GPUs,] largest group)
        Without the part in brackets for ``level`` 3.
    """
    points = []
    for shape in _integer_partitions(k, k):
        pairs, triples, quads = (sum(math.comb(g, s) for g in shape) for s in (2, 3, 4))
        apart = sum(math.comb(g, 2) * math.comb(h, 2) for g, h in itertools.combinations(shape, 2))
        counts = (pairs, triples, quads, apart) if level == 4 else (pairs, triples)
        points.append((*counts, max(shape)))
    return tuple(points)


@cache
def symmetric_facets(k: int, level: int) -> tuple[tuple[int, ...], ...]:
    """All facets of the convex hull of :func:`shape_points` and everything above it.

    Returns
    -------
    tuple of (right side, coefficients of the counts, coefficient of the time)
        ``coefficients · counts + coefficient · time >= right side``, whole numbers. With
        coefficient 0 a row says which counts k experts can have.
    """
    points = np.array(shape_points(k, level), dtype=np.int64)
    rows = [row for row in _hull_rows(points) if row[-1] > 0]
    rows += [(*row, 0) for row in _hull_rows(points[:, :-1])]
    return tuple(sorted(set(rows)))


def _integer_partitions(total: int, largest: int) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    return [
        (first, *rest)
        for first in range(min(total, largest), 0, -1)
        for rest in _integer_partitions(total - first, first)
    ]


def _hull_rows(points: IntArray) -> list[tuple[int, ...]]:
    """Hyperplanes through d of the points in d dimensions with all points on one side.

    Exact: the normals are minors, far below 2**63 for the points above.
    """
    d = points.shape[1]
    chosen = points[np.array(list(itertools.combinations(range(len(points)), d)))]
    edges = chosen[:, 1:] - chosen[:, :1]
    normal = np.stack(
        [(-1) ** j * _determinants(np.delete(edges, j, axis=2)) for j in range(d)], axis=1
    )
    value = normal @ points.T - np.sum(normal * chosen[:, 0], axis=1)[:, None]
    rows = set()
    for sign in (1, -1):
        ok = (sign * value >= 0).all(axis=1) & normal.any(axis=1)
        for n, point in zip(sign * normal[ok], chosen[ok, 0], strict=True):
            row = [int(n @ point), *n.tolist()]
            divisor = math.gcd(*row)
            rows.add(tuple(value // divisor for value in row))
    return sorted(rows)


def _determinants(matrices: IntArray) -> IntArray:
    """Determinants of small matrices, shape (N, n, n), by Leibniz's formula."""
    n = matrices.shape[1]
    total = np.zeros(len(matrices), dtype=np.int64)
    for columns in itertools.permutations(range(n)):
        swaps = sum(a > b for a, b in itertools.combinations(columns, 2))
        total += (-1) ** swaps * np.prod(matrices[:, range(n), columns], axis=1)
    return total


# -- objective and rows ----------------------------------------------------------------------------


def add_times(m: pyo.ConcreteModel, data: ProblemData, level: int) -> None:
    """Expected time (N5); columns and rows for scenarios of more than ``level`` experts."""
    sets = (m.PAIR, *((m.TRIPLE,) if level > 2 else ()), *((m.QUAD,) if level > 3 else ()))
    for size, members in enumerate(sets, start=2):
        weights = {
            (l, *member): weight
            for l, layer in enumerate(data.scenarios)
            for member, weight in _containing(layer, size, level).items()
        }
        param = pyo.Param(m.L, members, initialize=weights, default=0.0)
        m.add_component(f"p{size}", param)
    large = _large(data, level)
    weight = {(l, s): float(data.scenarios[l].weight[s]) for l, s in large}
    small = math.fsum(w for layer in data.scenarios for w in layer.weight[layer.sizes <= level])
    m.known = pyo.Param(initialize=small)
    m.LARGE = pyo.Set(dimen=2, initialize=large)
    m.p = pyo.Param(m.LARGE, initialize=weight)
    if large:
        _add_large(m, data, level)

    def expected_time_rule(m):
        time = m.known + sum(m.p2[l, i, j] * m.z[l, i, j] for l in m.L for i, j in m.PAIR)
        if level > 2:
            time -= sum(m.p3[l, i, j, k] * m.t[l, i, j, k] for l in m.L for i, j, k in m.TRIPLE)
        if level > 3:
            time += sum(
                m.p4[l, a, b, d, e] * m.q[l, a, b, d, e] for l in m.L for a, b, d, e in m.QUAD
            )
            time -= sum(
                m.p4[l, a, b, d, e] * m.w[l, a, b, d, e, h]
                for l in m.L
                for a, b, d, e in m.QUAD
                for h in m.H
            )
        if large:
            time += sum(m.p[l, s] * m.T[l, s] for l, s in m.LARGE)
        return time

    m.expected_time = pyo.Objective(rule=expected_time_rule)


def _containing(layer: Scenarios, size: int, level: int) -> dict[Members, float]:
    """Weight of the scenarios of at most ``level`` experts that contain each subset."""
    weights: dict[Members, list[float]] = {}
    for s in np.flatnonzero((layer.sizes >= size) & (layer.sizes <= level)).tolist():
        for subset in itertools.combinations(layer.members(s).tolist(), size):
            weights.setdefault(subset, []).append(float(layer.weight[s]))
    return {subset: math.fsum(parts) for subset, parts in weights.items()}


def _large(data: ProblemData, level: int) -> list[tuple[int, int]]:
    return [
        (l, s)
        for l, layer in enumerate(data.scenarios)
        for s in np.flatnonzero(layer.sizes > level).tolist()
    ]


def _add_large(m: pyo.ConcreteModel, data: ProblemData, level: int) -> None:
    """Columns T of large scenarios; star rows (N6), subset rows (N7), counts and facets (N8)."""
    members = {(l, s): data.scenarios[l].members(s).tolist() for l, s in m.LARGE}
    sizes = {scenario: len(experts) for scenario, experts in members.items()}

    def bounds_rule(m, l, s):
        return -(-sizes[l, s] // data.gpus), sizes[l, s]

    m.T = pyo.Var(m.LARGE, domain=pyo.NonNegativeIntegers, bounds=bounds_rule, dense=False)
    stars = {
        (*scenario, i): [(min(i, j), max(i, j)) for j in experts if j != i]
        for scenario, experts in members.items()
        for i in experts
    }
    m.STAR = pyo.Set(dimen=3, initialize=list(stars))
    m.MATES = pyo.Set(m.STAR, dimen=2, initialize=stars)

    def star_rule(m, l, s, i):
        return m.T[l, s] - sum(m.z[l, a, b] for a, b in m.MATES[l, s, i]) >= 1

    m.star_row = pyo.Constraint(m.STAR, rule=star_rule)
    faceted = {key: e for key, e in members.items() if len(e) <= LARGEST_FACETED}
    if level > 2 and faceted:
        _add_subsets(m, faceted, level)
        _add_facets(m, faceted, level)


def _add_subsets(m: pyo.ConcreteModel, faceted: dict[Scenario, list[int]], level: int) -> None:
    subsets = [
        (*scenario, *subset)
        for scenario, experts in faceted.items()
        for subset in itertools.combinations(experts, level)
    ]
    m.SUBSET = pyo.Set(dimen=2 + level, initialize=subsets)

    def triple_rule(m, l, s, i, j, k):
        together = m.z[l, i, j] + m.z[l, i, k] + m.z[l, j, k] - m.t[l, i, j, k]
        return m.T[l, s] - together >= 1

    def quad_rule(m, l, s, a, b, d, e):
        return (
            m.T[l, s]
            - (m.z[l, a, b] + m.z[l, a, d] + m.z[l, a, e])
            - (m.z[l, b, d] + m.z[l, b, e] + m.z[l, d, e])
            + (m.t[l, a, b, d] + m.t[l, a, b, e] + m.t[l, a, d, e] + m.t[l, b, d, e])
            - m.q[l, a, b, d, e]
            + sum(m.w[l, a, b, d, e, h] for h in m.H)
            >= 1
        )

    m.subset_row = pyo.Constraint(m.SUBSET, rule=quad_rule if level == 4 else triple_rule)


def _add_facets(m: pyo.ConcreteModel, faceted: dict[Scenario, list[int]], level: int) -> None:
    """Counts n[l, s, v] of pairs, triples, quadruples, splits, and the facets on them."""
    kinds = 2 if level == 3 else 4
    m.V = pyo.RangeSet(0, kinds - 1)
    m.FACETED = pyo.Set(dimen=2, initialize=list(faceted))
    m.WITHIN2 = pyo.Set(m.FACETED, dimen=2, initialize=_subsets_of(faceted, 2))
    m.WITHIN3 = pyo.Set(m.FACETED, dimen=3, initialize=_subsets_of(faceted, 3))
    most = math.comb(max(map(len, faceted.values())), 2) ** 2
    m.n = pyo.Var(m.FACETED, m.V, domain=pyo.NonNegativeIntegers, bounds=(0, most), dense=False)

    def pairs_rule(m, l, s):
        return m.n[l, s, 0] - sum(m.z[l, i, j] for i, j in m.WITHIN2[l, s]) == 0

    def triples_rule(m, l, s):
        return m.n[l, s, 1] - sum(m.t[l, i, j, k] for i, j, k in m.WITHIN3[l, s]) == 0

    m.count_pairs_row = pyo.Constraint(m.FACETED, rule=pairs_rule)
    m.count_triples_row = pyo.Constraint(m.FACETED, rule=triples_rule)
    if level == 4:
        m.WITHIN4 = pyo.Set(m.FACETED, dimen=4, initialize=_subsets_of(faceted, 4))

        def quads_rule(m, l, s):
            return m.n[l, s, 2] - sum(m.q[l, a, b, d, e] for a, b, d, e in m.WITHIN4[l, s]) == 0

        def splits_rule(m, l, s):
            splits = sum(m.w[l, a, b, d, e, h] for a, b, d, e in m.WITHIN4[l, s] for h in m.H)
            return m.n[l, s, 3] - splits == 0

        m.count_quads_row = pyo.Constraint(m.FACETED, rule=quads_rule)
        m.count_splits_row = pyo.Constraint(m.FACETED, rule=splits_rule)
    sizes = sorted({len(e) for e in faceted.values()})
    facets = [(k, row) for k in sizes for row in symmetric_facets(k, level)]
    m.F = pyo.RangeSet(0, len(facets) - 1)
    m.right = pyo.Param(m.F, initialize={f: row[0] for f, (_, row) in enumerate(facets)})
    m.on_time = pyo.Param(m.F, initialize={f: row[-1] for f, (_, row) in enumerate(facets)})
    m.on_count = pyo.Param(
        m.F,
        m.V,
        initialize={(f, v): row[1 + v] for f, (_, row) in enumerate(facets) for v in range(kinds)},
    )
    pairs = [
        (*scenario, f)
        for scenario, experts in faceted.items()
        for f, (k, _) in enumerate(facets)
        if k == len(experts)
    ]
    m.FACET = pyo.Set(dimen=3, initialize=pairs)

    def facet_rule(m, l, s, f):
        return (
            m.on_time[f] * m.T[l, s] + sum(m.on_count[f, v] * m.n[l, s, v] for v in m.V)
            >= m.right[f]
        )

    m.facet_row = pyo.Constraint(m.FACET, rule=facet_rule)


def _subsets_of(faceted: dict[Scenario, list[int]], size: int) -> dict[Scenario, list[Members]]:
    return {key: list(itertools.combinations(e, size)) for key, e in faceted.items()}


# -- size ------------------------------------------------------------------------------------------


def large_size(data: ProblemData, level: int) -> tuple[int, int, int]:
    """(rows, columns, nonzeros) of the rows for scenarios of more than ``level`` experts."""
    rows = columns = nonzeros = 0
    sizes = np.concatenate([layer.sizes for layer in data.scenarios])
    kinds, counts = np.unique(sizes[sizes > level], return_counts=True)
    for k, many in zip(kinds.tolist(), counts.tolist(), strict=True):
        rows, columns, nonzeros = rows + many * k, columns + many, nonzeros + many * k * k
        if level == 2 or k > LARGEST_FACETED:
            continue
        subsets = [math.comb(k, s) for s in (2, 3, 4)]
        facets = symmetric_facets(k, level)
        used = sum(value != 0 for row in facets for value in row[1:])
        if level == 3:
            rows += many * (subsets[1] + 2 + len(facets))
            columns += many * 2
            nonzeros += many * (subsets[1] * 5 + 2 + subsets[0] + subsets[1] + used)
        else:
            rows += many * (subsets[2] + 4 + len(facets))
            columns += many * 4
            nonzeros += many * (subsets[2] * 15 + 4 + sum(subsets) + 3 * subsets[2] + used)
    return rows, columns, nonzeros
