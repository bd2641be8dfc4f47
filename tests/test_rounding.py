"""The integer program for CP-SAT is a relaxation: exhaustively, on small programs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from adapter_process import Case, makespan, model, run_adapter
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st

from moeopt.linear import Block
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.dyadic import ZERO_EXPONENT, split
from moeopt.solvers.rounding import (
    NO_LOWER,
    NO_UPPER,
    NotRepresentable,
    round_model,
)
from moeopt.solvers.tighten import finite_bounds

# --- exact optima of programs whose last column is the only continuous one


def _interval(rows, lower, upper):
    """Interval of x under rows (rest, a, low, high): low <= rest + a x <= high."""
    for rest, a, low, high in rows:
        if a == 0:
            if not low <= rest <= high:
                return None
            continue
        ends = [
            (low - rest) / a if not math.isinf(low) else -math.inf * a,
            (high - rest) / a if not math.isinf(high) else math.inf * a,
        ]
        lower, upper = max(lower, min(ends)), min(upper, max(ends))
    return (lower, upper) if lower <= upper else None


def _exact(value):
    return value if math.isinf(value) else Fraction(float(value))


def true_optimum(m):
    """Exact optimum (minimising) by enumeration; None if infeasible, -inf if unbounded."""
    dense = m.matrix.toarray()
    n = len(m.cost) - 1
    best = None
    ranges = [range(math.ceil(m.lower[k]), math.floor(m.upper[k]) + 1) for k in range(n)]
    for point in itertools.product(*ranges):
        rows = [
            (
                sum(Fraction(dense[i, k]) * point[k] for k in range(n)),
                Fraction(dense[i, n]),
                _exact(m.row_lower[i]),
                _exact(m.row_upper[i]),
            )
            for i in range(dense.shape[0])
        ]
        span = _interval(rows, _exact(m.lower[n]), _exact(m.upper[n]))
        if span is None:
            continue
        c = m.sense * Fraction(m.cost[n])
        x = span[0] if c >= 0 else span[1]
        if c == 0:
            x = Fraction(0)
        elif math.isinf(x):
            return -math.inf
        fixed = sum(Fraction(m.cost[k]) * point[k] for k in range(n)) + Fraction(m.offset)
        value = m.sense * fixed + c * x
        best = value if best is None else min(best, value)
    return best


def rounded_optimum(r):
    """Exact least ``objective @ t`` of the rounded program, None if infeasible."""
    n = len(r.objective) - 1
    low, high = r.grid.lower, r.grid.upper
    best = None
    for point in itertools.product(*(range(low[k], high[k] + 1) for k in range(n))):
        first, last = int(low[n]), int(high[n])
        fine = True
        for i in range(len(r.row_lower)):
            part = slice(r.indptr[i], r.indptr[i + 1])
            a, rest = 0, 0
            for k, c in zip(r.indices[part].tolist(), r.coefficients[part].tolist(), strict=True):
                if k == n:
                    a = c
                else:
                    rest += c * point[k]
            lower, upper = r.row_lower[i], r.row_upper[i]
            if a == 0:
                fine &= lower <= rest <= upper
                continue
            if a < 0:
                a, rest, lower, upper = (
                    -a,
                    -rest,
                    NO_LOWER if upper == NO_UPPER else -upper,
                    NO_UPPER if lower == NO_LOWER else -lower,
                )
            if lower != NO_LOWER:
                first = max(first, -((rest - lower) // a))
            if upper != NO_UPPER:
                last = min(last, (upper - rest) // a)
        if not fine or first > last:
            continue
        c = int(r.objective[n])
        value = sum(int(r.objective[k]) * point[k] for k in range(n))
        value += c * (first if c >= 0 else last)
        best = value if best is None else min(best, value)
    return best


AWKWARD = st.one_of(
    st.sampled_from(
        [0.0, 0.1, -0.1, 0.3, 1.0, -1.0, 1 / 3, -2.5, 0.0123456789, 1e-4, 4096.1, 47.5]
    ),
    st.floats(-50, 50, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6),
    st.integers(-9, 9).map(float),
)
SIDE = st.one_of(AWKWARD, st.none())


@st.composite
def small_programs(draw):
    """Programs with up to three integer columns and one continuous column."""
    n = draw(st.integers(1, 3))
    lower = [draw(st.integers(-2, 1)) for _ in range(n)]
    upper = [low + draw(st.integers(0, 2)) for low in lower]
    end = draw(st.one_of(st.floats(-30, 30), st.integers(-3, 3).map(float)))
    width = draw(st.one_of(st.floats(0, 40), st.sampled_from([2.0, 8.0, 10 / 3])))
    open_below, open_above = draw(st.booleans()), draw(st.booleans())
    rows = [[draw(AWKWARD) for _ in range(n + 1)] for _ in range(draw(st.integers(1, 4)))]
    sides = []
    for _ in rows:
        low, high = draw(SIDE), draw(SIDE)
        low = -math.inf if low is None else low
        high = math.inf if high is None else high
        if low > high:
            low, high = high, low
        sides.append((low, low if draw(st.integers(0, 9)) == 0 and low > -math.inf else high))
    return model(
        rows,
        sides,
        [draw(AWKWARD) for _ in range(n + 1)],
        [*lower, -math.inf if open_below else end],
        [*upper, math.inf if open_above else end + width],
        [True] * n + [False],
        offset=draw(AWKWARD),
        sense=draw(st.sampled_from([1, -1])),
    )


@seed(20250419)
@settings(max_examples=400, deadline=None, database=None)
@given(small_programs())
def test_the_rounded_program_is_a_relaxation(m):
    try:
        r = round_model(m)
    except NotRepresentable:
        assume(False)
    optimum = true_optimum(m)
    if r.infeasible:
        assert optimum is None
        return
    found = rounded_optimum(r)
    if optimum is None:
        return  # a relaxation may be feasible
    assert found is not None
    assert m.sense * Fraction(r.bound(found)) <= optimum
    if r.exact:
        assert m.sense * r.bound(found) == pytest.approx(float(optimum), rel=1e-14)


@seed(20250420)
@settings(max_examples=200, deadline=None, database=None)
@given(small_programs())
def test_derived_bounds_keep_the_optimum(m):
    lower, upper = finite_bounds(m)
    assert (lower >= m.lower).all()
    assert (upper <= m.upper).all()
    before = true_optimum(m)
    after = true_optimum(
        model(
            m.matrix.toarray(),
            list(zip(m.row_lower, m.row_upper, strict=True)),
            m.cost,
            lower,
            upper,
            m.integer,
            offset=m.offset,
            sense=m.sense,
        )
    )
    if before is None or after is None or math.isinf(before):
        assert before == after
    else:
        # Derived bounds are rounded outwards to doubles, never inwards.
        assert after == before


@seed(20250421)
@settings(max_examples=60, deadline=None, database=None)
@given(small_programs())
def test_points_near_the_solution_survive(m):
    """The hint of a true solution is feasible in the rounded program (no lattice column moves)."""
    try:
        r = round_model(m)
    except NotRepresentable:
        assume(False)
    assume(not r.infeasible and bool(r.grid.remainder[-1]))
    dense = m.matrix.toarray()
    n = len(m.cost) - 1
    for point in itertools.product(
        *(range(int(m.lower[k]), int(m.upper[k]) + 1) for k in range(n))
    ):
        for step in range(5):
            low, high = r.grid.lower[-1], r.grid.upper[-1]
            unit = Fraction(2) ** int(r.grid.exponent[-1])
            x = (int(low) + Fraction(int(high - low) * step, 4)) * unit + unit / 3
            if not _exact(m.lower[-1]) <= x <= _exact(m.upper[-1]):
                continue
            full = [Fraction(p) for p in point] + [x]
            activity = [
                sum(Fraction(a) * v for a, v in zip(row, full, strict=True)) for row in dense
            ]
            if not all(
                _exact(low_) <= act <= _exact(high_)
                for low_, act, high_ in zip(m.row_lower, activity, m.row_upper, strict=True)
            ):
                continue
            t = [*point, math.floor(x / unit)]
            for i in range(len(activity)):
                part = slice(r.indptr[i], r.indptr[i + 1])
                value = sum(
                    c * t[k]
                    for k, c in zip(
                        r.indices[part].tolist(), r.coefficients[part].tolist(), strict=True
                    )
                )
                assert r.row_lower[i] <= value <= r.row_upper[i]


# --- what must stay as it is


def test_integer_programs_lose_nothing():
    rng = np.random.default_rng(3)
    a = rng.integers(-9, 9, (6, 5))
    m = model(a, [(-20, 20)] * 6, rng.integers(-9, 9, 5), [-3] * 5, [4] * 5, [True] * 5, offset=7)
    r = round_model(m)
    assert r.exact
    # Rows may be scaled by powers of two, nothing else.
    for i in range(6):
        part = slice(r.indptr[i], r.indptr[i + 1])
        row = np.zeros(5)
        row[r.indices[part]] = r.coefficients[part]
        ratio = row[np.flatnonzero(row)] / a[i][np.flatnonzero(row)]
        assert (ratio == ratio[0]).all()
        assert math.log2(ratio[0]).is_integer()
    assert (r.objective / float(r.scale) == m.cost).all()
    assert r.bound(0) == 7


def test_dyadic_rows_stay_exact():
    mib = 123456789 / 2**20  # whole bytes
    m = model(
        [[mib, 2 * mib, 0.5]],
        [(-math.inf, 1000 + 5 / 2**20)],
        [1, 1, 1],
        [0] * 3,
        [9] * 3,
        [True] * 3,
    )
    assert round_model(m).exact


def test_epigraph_column_of_integers_is_an_integer():
    # min T, T >= 3 x + 5 y, T >= 7 z: T may be taken integer, so nothing is lost.
    m = model(
        [[3, 5, 0, -1], [0, 0, 7, -1], [1, 1, 1, 0]],
        [(-math.inf, 0), (-math.inf, 0), (2, 2)],
        [0, 0, 0, 1],
        [0] * 4,
        [1, 1, 1, math.inf],
        [True, True, True, False],
    )
    r = round_model(m)
    assert r.exact
    assert r.grid.exponent[3] == 0
    assert r.bound(rounded_optimum(r)) == 7


def test_lattice_needs_the_end_points_of_the_good_side_only():
    # The upper bound of T is no multiple of anything, and does not matter.
    m = model([[3, -1]], [(-math.inf, 0)], [-1, 0.25], [0, 0], [1, 10 / 3], [True, False])
    r = round_model(m)
    assert not r.grid.remainder[1]
    assert r.grid.upper[1] == 3
    m = model([[0.1, -1]], [(-math.inf, 0)], [-1, 0.25], [0, 0], [1, 10 / 3], [True, False])
    assert round_model(m).grid.remainder[1]


def test_lattice_is_on_the_side_that_the_cost_wants():
    # max T, 3 x <= T <= 10/3: the end points from below are integers, the optimum is not.
    m = model([[3, -1]], [(-math.inf, 0)], [0, 1], [0, 0], [1, 10 / 3], [True, False], sense=-1)
    r = round_model(m)
    assert r.bound(rounded_optimum(r)) >= 10 / 3


def test_bounds_are_rounded_to_the_safe_side():
    m = model([[1, 1]], [(0, 1)], [2.0**-60, 1], [0, 0], [1, 1], [True, True], offset=1 / 3)
    r = round_model(m)
    for t in (2**k + 1 for k in range(20, 60)):
        assert Fraction(r.bound(t)) <= Fraction(t) / r.scale + r.constant
    r = round_model(replace(m, sense=-1, offset=0.1))
    for t in (2**k + 1 for k in range(20, 60)):
        assert Fraction(r.bound(t)) >= -(Fraction(t) / r.scale + r.constant)


# --- what must be refused


def test_open_columns_are_refused_by_name():
    blocks = {"x": Block(0, (1,)), "T": Block(1, (2,))}
    m = model(
        [[1, 1, 0]],
        [(-math.inf, 4)],
        [1, -1, -1],
        [0, 0, 0],
        [1, math.inf, math.inf],
        [True, False, False],
        columns=blocks,
    )
    with pytest.raises(NotRepresentable, match=r"T\[1\]") as caught:
        round_model(m)
    assert "T[0]" not in str(caught.value)  # bounded by the row


def test_sums_beyond_62_bits_are_refused():
    n = 100
    m = model([[0.1] * n], [(0, 1e9)], [0] * n, [0] * n, [2**45] * n, [True] * n)
    with pytest.raises(NotRepresentable, match="row 0: "):
        round_model(m)
    with pytest.raises(NotRepresentable, match="bounds of column 0 are too large"):
        round_model(model([[1]], [(0, 1)], [1], [0], [2**60], [True]))


def test_activities_stay_below_62_bits():
    rng = np.random.default_rng(1)
    a = rng.uniform(-1, 1, (20, 30)) * 10.0 ** rng.integers(-9, 9, (20, 30))
    m = model(a, [(-1e3, 1e3)] * 20, a[0], [-1e3] * 30, [1e3] * 30, [True] * 15 + [False] * 15)
    r = round_model(m)
    largest = [
        max(abs(int(x)), abs(int(y))) for x, y in zip(r.grid.lower, r.grid.upper, strict=True)
    ]
    for i in range(20):
        part = slice(r.indptr[i], r.indptr[i + 1])
        terms = zip(r.indices[part].tolist(), r.coefficients[part].tolist(), strict=True)
        assert sum(abs(c) * largest[k] for k, c in terms) < 2**62
    assert sum(abs(int(c)) * largest[k] for k, c in enumerate(r.objective)) < 2**51


def test_split_is_exact():
    values = np.array([0.0, 1.0, -6.0, 0.1, -1e-300, 3 * 2.0**60])
    odd, exponent = split(values)
    assert odd[0] == 0
    assert exponent[0] == ZERO_EXPONENT
    for value, o, e in zip(values[1:], odd[1:], exponent[1:], strict=True):
        assert int(o) % 2
        assert Fraction(float(value)) == Fraction(int(o)) * Fraction(2) ** int(e)


# --- against the solvers


def test_the_documented_trap():
    """OR-Tools' own conversion reports a bound of 143 where the optimum is 141.395."""
    m = makespan(2, 10, 3, 0.0123456789, seed=5)
    tight = SolveSettings(gap=1e-9, threads=8, time_limit_s=60)
    ((cp, events),) = run_adapter("cpsat", [Case(m, tight)])
    ((mip, _),) = run_adapter("highs", [Case(m, SolveSettings(gap=1e-9, time_limit_s=60))])
    assert mip.reason == "optimal"
    assert cp.reason in ("optimal", "imprecise")
    # HiGHS' optimum is a double within its tolerance.
    assert cp.dual_bound <= mip.primal_bound + 1e-7
    assert cp.dual_bound >= mip.primal_bound - 1e-4
    assert all(e.dual_bound <= mip.primal_bound + 1e-7 for e in events if e.dual_bound is not None)


def test_bounds_of_random_mixed_programs():
    rng = np.random.default_rng(11)
    cases = []
    for k in range(25):
        n, c, rows = 4, 3, 4
        a = np.round(rng.normal(0, 10, (rows, n + c)), 3)
        inside = np.r_[rng.integers(0, 4, n), rng.uniform(0, 10, c)]
        slack = rng.uniform(0, 5, rows)
        sides = [
            (v - s if k % 2 else -math.inf, v + s) for v, s in zip(a @ inside, slack, strict=True)
        ]
        if k % 3 == 0:
            sides[0] = (sides[0][1], sides[0][1])
        cases.append(
            Case(
                model(
                    a,
                    sides,
                    np.round(rng.normal(0, 3, n + c), 2),
                    [0] * (n + c),
                    [3] * n + [10.1] * c,
                    [True] * n + [False] * c,
                    offset=0.7,
                    sense=1 if k % 4 else -1,
                ),
                SolveSettings(gap=1e-9, time_limit_s=20),
            )
        )
    cp, mip = run_adapter("cpsat", cases), run_adapter("highs", cases)
    for case, (left, _), (right, _) in zip(cases, cp, mip, strict=True):
        assert right.reason == "optimal"
        assert left.reason in ("optimal", "imprecise")
        size = max(1.0, abs(right.primal_bound))
        excess = case.model.sense * (left.dual_bound - right.primal_bound)
        assert excess <= 1e-6 * size
        assert excess >= -1e-3 * size
