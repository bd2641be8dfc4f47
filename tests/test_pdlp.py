"""PDLP's adapter, the polishing of its duals, and the lift to the lattice of plan values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from adapter_process import Case, model, run_adapter
from brute import brute_optimum
from make_data import random_data
from scipy import sparse
from scipy.optimize import linprog

from moeopt.catalog import LP_SOLVERS, SOLVERS, load_formulation, read_instance
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.errors import InputError
from moeopt.lattice_lift import lift, whole_total
from moeopt.linear import LinearModel
from moeopt.prepare import prepare
from moeopt.safe_bound import safe_dual_bound
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.polish import polished
from moeopt.solvers.selfcheck import self_check
from moeopt.solvers.supervise import run_job


def random_lp(rng, rows=6, columns=8) -> LinearModel:
    """A feasible, bounded LP with rows of all kinds, min or max."""
    dense = np.where(rng.random((rows, columns)) < 0.6, rng.integers(-4, 5, (rows, columns)), 0)
    lower = rng.integers(-3, 1, columns).astype(float)
    upper = lower + rng.integers(1, 5, columns)
    inside = dense @ rng.uniform(lower, upper)
    kind = rng.integers(0, 4, rows)
    width = rng.random(rows)
    return LinearModel(
        matrix=sparse.csr_array(dense.astype(float)),
        cost=rng.integers(-5, 6, columns).astype(float),
        lower=lower,
        upper=upper,
        row_lower=np.where(kind == 0, -np.inf, np.where(kind == 3, inside, inside - width)),
        row_upper=np.where(kind == 1, np.inf, np.where(kind == 3, inside, inside + width)),
        integer=np.zeros(columns, dtype=bool),
        offset=float(rng.integers(-3, 4)),
        sense=int(rng.choice([1, -1])),
    )


def optimum_of(lp: LinearModel) -> float:
    a, low, high = lp.matrix.toarray(), lp.row_lower, lp.row_upper
    up, down = np.isfinite(high), np.isfinite(low)
    found = linprog(
        lp.sense * lp.cost,
        A_ub=np.vstack([a[up], -a[down]]),
        b_ub=np.concatenate([high[up], -low[down]]),
        bounds=list(zip(lp.lower, lp.upper, strict=True)),
    )
    assert found.status == 0
    return lp.sense * found.fun + lp.offset


def test_bounds_and_values_on_random_lps():
    lps = [random_lp(np.random.default_rng(seed)) for seed in range(30)]
    for lp, (result, events) in zip(
        lps, run_adapter("pdlp", [Case(lp) for lp in lps]), strict=True
    ):
        optimum = optimum_of(lp)
        scale = max(1.0, abs(optimum))
        assert result.reason == "optimal"
        assert result.primal_bound == pytest.approx(optimum, abs=1e-4 * scale)
        assert lp.sense * (optimum - result.dual_bound) >= -1e-9 * scale
        assert result.dual_bound == pytest.approx(optimum, abs=1e-5 * scale)
        assert result.dual_bound == safe_dual_bound(lp, result.row_dual)
        assert events[-1].dual_bound == result.dual_bound


def test_integers_are_refused():
    with pytest.raises(InputError, match="1 columns are integer"):
        run_adapter("pdlp", [Case(model([[1]], [(0, 1)], [1], [0], [1], [True]))])
    data = prepare(read_instance("smoke_placement_unit"), "placement")
    outcome = run_job(data, "placement_pairs", "pdlp", SolveSettings(time_limit_s=20))
    assert "integer" in outcome.input_error[0]
    assert outcome.result is None


def test_options_are_strict():
    lp = random_lp(np.random.default_rng(0))
    for options, message in (
        ({"eps_optimal_relativ": 1e-4}, "eps_optimal_relative"),
        ({"l_inf_ruiz_iterations": "many"}, "does not take"),
        ({"iteration_limit": 5}, "no option"),
    ):
        with pytest.raises(InputError, match=message):
            run_adapter("pdlp", [Case(lp, SolveSettings(options=options))])
    loose = {"eps_optimal_relative": 1e-2, "eps_optimal_absolute": 1e-2}
    settings = SolveSettings(gap=1e-9, options=loose)
    result, _ = run_adapter("pdlp", [Case(lp, settings)])[0]
    assert result.reason in ("imprecise", "optimal")
    assert lp.sense * (optimum_of(lp) - result.dual_bound) >= -1e-9


def test_infeasible_lp():
    lp = model([[1, 1], [1, 1]], [(3, np.inf), (-np.inf, 1)], [1, 1], [0, 0], [4, 4], [False] * 2)
    result, _ = run_adapter("pdlp", [Case(lp)])[0]
    assert result.reason in ("infeasible", "infeasible_or_unbounded")
    assert result.dual_bound is None


def test_stop_and_log(tmp_path):
    lp = random_lp(np.random.default_rng(1))
    log = str(tmp_path / "log")
    stopped, run = run_adapter("pdlp", [Case(lp, stop=True), Case(lp, log_path=log)])
    assert (stopped[0].reason, stopped[0].limit) == ("no_solution_found", "interrupted")
    assert run[0].reason == "optimal"
    assert "safe bound" in (tmp_path / "log").read_text()


def test_time_limit_keeps_a_bound():
    data = prepare(read_instance("dbrx_16x4_seed0"), "placement")
    formulation = load_formulation("placement_patterns")
    with declarative():
        lp = compile_model(formulation.build(data)).relax()
    result, _ = run_adapter("pdlp", [Case(lp, SolveSettings(time_limit_s=1.0, gap=1e-12))])[0]
    assert (result.reason, result.limit) == ("feasible", "time")
    assert result.seconds < 8
    assert result.dual_bound < 1.84876


def test_self_check_and_lists():
    assert self_check("pdlp") is None
    assert "pdlp" in LP_SOLVERS
    assert "pdlp" not in SOLVERS


def test_relaxation_in_a_worker_by_both_solvers():
    data = prepare(read_instance("smoke_placement_spare_slots"), "placement")
    runs = [("pdlp", {}), ("highs", {}), ("highs", {"solver": "ipx", "run_crossover": "off"})]
    for solver, options in runs:
        outcome = run_job(
            data,
            "placement_patterns",
            solver,
            SolveSettings(time_limit_s=30, options=options),
            relax=True,
        )
        assert outcome.result.dual_bound == pytest.approx(1.2, abs=2e-6), (solver, options)
        assert outcome.result.dual_bound <= 1.2
        assert "safe dual bound" in outcome.result.dual_bound_from


def test_polishing_never_harms_and_often_helps():
    gained = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lp = random_lp(rng)
        dual = rng.normal(size=6)
        before, after = safe_dual_bound(lp, dual), safe_dual_bound(lp, polished(lp, dual))
        slack = 1e-9 * max(1.0, abs(before))
        assert lp.sense * (after - before) >= -slack
        assert lp.sense * (optimum_of(lp) - after) >= -slack
        gained += lp.sense * (after - before) > 1e-6
    assert gained > 40


# -- lattice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_totals_are_recovered_from_weights(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1 + 10 * (seed % 2), 5000, 40)
    total = int(counts.sum())
    divisor = math.gcd(*counts.tolist())
    assert whole_total(counts / total) == total // divisor


def test_no_total_where_there_is_none():
    weights = np.random.default_rng(0).random(50)
    assert whole_total(weights / weights.sum()) is None
    assert whole_total([0.5, -0.5]) is None
    assert whole_total([np.nan]) is None
    assert lift(1.25, weights / weights.sum()) == 1.25


def test_lift_reaches_the_next_multiple_and_no_further():
    counts = np.array([3, 5, 9])
    weights = counts / 17
    for times in ([1, 1, 1], [2, 1, 1], [1, 2, 3]):
        value = Fraction(int(counts @ times), 17)
        below = lift(float(value) - 1e-3, weights)
        assert value * (1 - Fraction(1, 2**48)) <= Fraction(below) <= value
        assert lift(float(value) + 1e-9, weights) > float(value) + 1e-3
        checked = math.fsum((weights * times).tolist())
        assert below <= checked
        # A bound equal to the value, as the checker rounds it, is lifted no further.
        assert lift(checked, weights) == checked


def test_lift_of_several_layers():
    weights = [np.array([1, 2]) / 3, np.array([1, 3]) / 4]
    assert lift(2.05, weights) == pytest.approx(2 + 1 / 12)
    assert lift(2.05, weights) <= 2 + 1 / 12


@pytest.mark.parametrize("seed", range(10))
def test_lifted_bounds_hold(seed):
    rng = np.random.default_rng(seed)
    data = random_data("placement", rng, experts=5, top_k=3, gpus=2 + seed % 2, layers=1 + seed % 2)
    weights = [layer.weight for layer in data.scenarios]
    optimum = brute_optimum(data)[0]
    for below in (1e-12, 1e-6, 1e-3):
        assert optimum - below <= lift(optimum - below, weights) <= optimum
