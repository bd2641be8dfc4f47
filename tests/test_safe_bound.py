"""The safe dual bound never exceeds the true optimum, whatever the duals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

from moeopt.linear import LinearModel
from moeopt.safe_bound import Evaluation, on_grid, safe_dual_bound, two_product, two_sum


def model_of(
    matrix: object,
    cost: object,
    row_lower: object,
    row_upper: object,
    lower: object,
    upper: object,
    sense: int = 1,
    offset: float = 0.0,
) -> LinearModel:
    array = sparse.csr_array(np.atleast_2d(np.asarray(matrix, dtype=float)))
    array.eliminate_zeros()
    cost_array = np.asarray(cost, dtype=float)
    return LinearModel(
        matrix=array,
        cost=cost_array,
        lower=np.asarray(lower, dtype=float),
        upper=np.asarray(upper, dtype=float),
        row_lower=np.asarray(row_lower, dtype=float),
        row_upper=np.asarray(row_upper, dtype=float),
        integer=np.zeros(len(cost_array), dtype=bool),
        offset=offset,
        sense=sense,
    )


def exact_dual_value(model: LinearModel, dual: np.ndarray) -> Fraction | None:
    """The formula in exact fractions (of a minimisation); None for minus infinity."""
    dense = model.matrix.toarray()
    total = Fraction(model.offset)
    y = [Fraction(float(v)) for v in dual]
    for i, v in enumerate(y):
        side = model.row_lower[i] if v > 0 else model.row_upper[i]
        if v and math.isinf(side):
            y[i] = Fraction(0)
        elif v:
            total += v * Fraction(float(side))
    for j in range(dense.shape[1]):
        d = Fraction(float(model.cost[j])) - sum(
            Fraction(float(dense[i, j])) * y[i] for i in range(dense.shape[0])
        )
        if d:
            bound = float(model.lower[j] if d > 0 else model.upper[j])
            if math.isinf(bound):
                return None
            total += d * Fraction(bound)
    return total


def optimum(model: LinearModel) -> tuple[float, np.ndarray]:
    """Optimum and row duals by SciPy (HiGHS inside SciPy clashes with nothing)."""
    upper = np.isfinite(model.row_upper)
    lower = np.isfinite(model.row_lower)
    dense = model.matrix.toarray()
    found = linprog(
        model.sense * model.cost,
        A_ub=np.vstack([dense[upper], -dense[lower]]),
        b_ub=np.concatenate([model.row_upper[upper], -model.row_lower[lower]]),
        bounds=np.column_stack([model.lower, model.upper]),
        method="highs",
    )
    assert found.status == 0
    dual = np.zeros(len(upper))
    dual[upper] += found.ineqlin.marginals[: upper.sum()]
    dual[lower] -= found.ineqlin.marginals[upper.sum() :]
    return model.sense * found.fun + model.offset, model.sense * dual


def random_model(seed: int, *, whole: bool, sense: int = 1) -> LinearModel:
    """A bounded LP with a feasible point; ``whole``: data that are integers."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(2, 7), rng.integers(2, 8)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-9, 10, shape).astype(float) if whole else rng.normal(0, 3, shape)

    matrix = draw(rows, columns) * (rng.random((rows, columns)) < 0.7)
    lower, span = draw(columns), np.abs(draw(columns)) + 1
    point = lower + span * (0.5 if whole else rng.random(columns))
    activity = matrix @ point
    row_lower = np.where(rng.random(rows) < 0.6, activity - rng.integers(0, 3, rows), -np.inf)
    row_upper = np.where(rng.random(rows) < 0.6, activity + rng.integers(0, 3, rows), np.inf)
    return model_of(
        matrix, draw(columns), row_lower, row_upper, lower, lower + span, sense, offset=0.125
    )


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_optimal_duals_prove_the_optimum(seed: int, whole: bool) -> None:
    sense = 1 if seed % 2 else -1
    model = random_model(seed, whole=whole, sense=sense)
    best, dual = optimum(model)
    bound = safe_dual_bound(model, dual)
    assert sense * bound <= sense * best + 1e-9
    assert bound == pytest.approx(best, abs=1e-8)


@given(seed=st.integers(0, 10**6), whole=st.booleans(), scale=st.sampled_from([1e-9, 1e-3, 1, 1e4]))
@settings(max_examples=150, deadline=None)
def test_never_above_the_exact_value(seed: int, whole: bool, scale: float) -> None:
    model = random_model(seed, whole=whole)
    rng = np.random.default_rng(seed)
    dual = rng.normal(0, scale, model.matrix.shape[0])
    dual[rng.random(len(dual)) < 0.2] = 0.0
    value = exact_dual_value(model, dual)
    bound = safe_dual_bound(model, dual)
    assert value is not None
    assert Fraction(bound) <= value
    assert float(value) - bound <= 1e-12 * (1 + scale) * 1e3
    best, _ = optimum(model)
    assert bound <= best + 1e-9


@given(
    mine=st.integers(0, 10**6),
    sides=st.lists(st.sampled_from([-math.inf, 0.0, 3.0, math.inf]), min_size=12, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_open_bounds_never_above_the_exact_value(mine: int, sides: list[float]) -> None:
    rng = np.random.default_rng(mine)
    matrix = rng.normal(0, 3, (4, 5))
    lower = np.array([-math.inf if s == -math.inf else -1.0 for s in sides[:5]])
    upper = np.array([math.inf if s == math.inf else 4.0 for s in sides[5:10]])
    model = model_of(
        matrix, rng.normal(0, 3, 5), [-1, -2, -math.inf, 0], [1, math.inf, 3, 0], lower, upper
    )
    dual = rng.normal(0, 1, 4)
    bound = safe_dual_bound(model, dual)
    value = exact_dual_value(model, dual)
    if value is None:
        # Pulling the duals towards zero may still prove something: check with those.
        evaluation = Evaluation(model)
        cleaned = dual.copy()
        cleaned[(dual > 0) & np.isinf(model.row_lower)] = 0
        cleaned[(dual < 0) & np.isinf(model.row_upper)] = 0
        others = [exact_dual_value(model, evaluation.shrunk(cleaned))]
        others.append(exact_dual_value(model, on_grid(cleaned)))
        proved = [v for v in others if v is not None]
        assert bound == -math.inf or any(Fraction(bound) <= v for v in proved)
    else:
        assert bound == -math.inf or Fraction(bound) <= value


def test_integral_data_lose_nothing() -> None:
    # min x + y, x + y >= 7, 0 <= x, y <= 5: y = 1 proves 7 exactly.
    model = model_of([[1, 1]], [1, 1], [7], [np.inf], [0, 0], [5, 5])
    assert safe_dual_bound(model, [1.0]) == 7.0
    assert safe_dual_bound(model, [0.0]) == 0.0
    assert safe_dual_bound(model, [0.5]) == 3.5
    assert safe_dual_bound(model, [2.0]) == 14 - 10
    # A dual that leans on a side that is not there counts as 0.
    assert safe_dual_bound(model, [-1.0]) == 0.0
    assert safe_dual_bound(model, [np.nan]) == 0.0


def test_maximisation_rounds_up() -> None:
    # max x + y, x + y <= 0.3 (not a short binary number).
    model = model_of([[1, 1]], [1, 1], [-np.inf], [0.3], [0, 0], [5, 5], sense=-1)
    assert safe_dual_bound(model, [1.0]) == 0.3
    third = model_of([[0.1, 0.1]], [1, 1], [-np.inf], [0.3], [0, 0], [5, 5], sense=-1)
    bound = safe_dual_bound(third, [10.0])
    assert Fraction(bound) >= Fraction(0.3) / Fraction(0.1)
    assert bound == pytest.approx(3.0, abs=1e-12)


def test_rounding_is_downwards() -> None:
    # 3 * 0.1 in doubles is above three times the double 0.1.
    model = model_of([[1.0]], [0.0], [0.1], [np.inf], [-1], [1])
    bound = safe_dual_bound(model, [3.0])
    exact = 3 * Fraction(0.1) - 3
    assert Fraction(bound) <= exact
    assert Fraction(math.nextafter(bound, math.inf)) > exact


def test_columns_without_an_upper_bound() -> None:
    # min t, t >= x_i, sum x = 1: no upper bound of t is given.
    matrix = [[-1, 0, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1], [1, 1, 1, 0]]
    model = model_of(
        matrix, [0, 0, 0, 1], [0, 0, 0, 1], [np.inf] * 3 + [1], [0] * 4, [1, 1, 1, np.inf]
    )
    third = 1 / 3
    bound = safe_dual_bound(model, [third, third, third, third])
    assert bound <= 1 / 3
    assert bound == pytest.approx(1 / 3, abs=1e-9)
    # Too much dual on t: its reduced cost is a hair below zero; pulling back mends it.
    bound = safe_dual_bound(model, [third + 1e-9, third, third, third])
    assert bound <= 1 / 3
    assert bound == pytest.approx(1 / 3, abs=1e-7)
    # Far too much: proves nothing.
    assert safe_dual_bound(model, [2, third, third, third]) == -math.inf


def test_free_column_with_integral_data() -> None:
    # A free column without cost needs d = 0 exactly: only exact sums can show it.
    model = model_of([[1, -1], [0, 1]], [1, 0], [0, 2], [np.inf] * 2, [0, -np.inf], [9, np.inf])
    assert safe_dual_bound(model, [1.0, 1.0]) == 2.0
    assert safe_dual_bound(model, [1 - 1e-13, 1 + 1e-13]) == pytest.approx(2.0, abs=1e-6)
    assert safe_dual_bound(model, [1.0, 0.5]) == -math.inf


def test_nothing_to_lean_on() -> None:
    model = model_of([[1.0]], [1.0], [-np.inf], [np.inf], [-np.inf], [np.inf])
    assert safe_dual_bound(model, [0.0]) == -math.inf
    upward = model_of([[1.0]], [1.0], [-np.inf], [np.inf], [-np.inf], [np.inf], sense=-1)
    assert safe_dual_bound(upward, [0.0]) == math.inf


def test_numbers_out_of_range_prove_nothing() -> None:
    model = model_of([[1.0]], [1.0], [1e300], [np.inf], [0], [1e300])
    assert safe_dual_bound(model, [1.0]) == -math.inf


def test_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="duals for 1 rows"):
        safe_dual_bound(model_of([[1.0]], [1.0], [0], [1], [0], [1]), [1.0, 2.0])


def test_error_free_transforms() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1e8, 500), rng.normal(0, 1e-3, 500)
    for x, y, s, t in zip(a, b, *two_sum(a, b), strict=True):
        assert Fraction(x) + Fraction(y) == Fraction(s) + Fraction(t)
    for x, y, s, t in zip(a, b, *two_product(a, b), strict=True):
        assert Fraction(x) * Fraction(y) == Fraction(s) + Fraction(t)


def test_activity_error_is_a_bound() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(0, 1, (60, 40)) * 10.0 ** rng.integers(-6, 6, (60, 40))
    model = model_of(matrix, np.zeros(40), np.zeros(60), np.ones(60), np.zeros(40), np.ones(40))
    dual = rng.normal(0, 1, 60)
    activity, error = Evaluation(model).activity(dual)
    for j in range(40):
        exact = sum(Fraction(matrix[i, j]) * Fraction(dual[i]) for i in range(60))
        assert abs(exact - Fraction(activity[j])) <= Fraction(error[j])
    whole = np.round(matrix * 4) % 64
    model = model_of(whole, np.zeros(40), np.zeros(60), np.ones(60), np.zeros(40), np.ones(40))
    activity, error = Evaluation(model).activity(on_grid(dual))
    assert (error == 0).all()
    for j in range(40):
        exact = sum(Fraction(whole[i, j]) * Fraction(on_grid(dual)[i]) for i in range(60))
        assert exact == Fraction(activity[j])
