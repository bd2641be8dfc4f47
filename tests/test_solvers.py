"""The adapters: what they return, and what they refuse. Every solver runs in its own process."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from adapter_process import Case, makespan, model, run_adapter

from moeopt.errors import InputError
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.probe import probe_model, probe_problem

SOLVERS = ("highs", "cpsat")
INF = math.inf


def knapsack(n=40, seed=0, sense=-1):
    rng = np.random.default_rng(seed)
    weight = rng.integers(20, 200, (5, n))
    side = [(-INF, float(w.sum() // 2)) for w in weight]
    value = rng.integers(20, 200, n)
    return model(
        weight, side, value if sense < 0 else -value, [0] * n, [1] * n, [True] * n, sense=sense
    )


KNOWN = {
    # name: (model, optimum)
    "probe": (probe_model(), 9.0),
    "maximise with offset": (
        model(
            [[3, 2], [1, 4]],
            [(-INF, 12), (-INF, 14)],
            [5, 4],
            [0, 0],
            [9, 9],
            [True, True],
            offset=100,
            sense=-1,
        ),
        122.0,
    ),
    "negative objective": (
        model([[2, 3]], [(-INF, 7)], [-3, -4], [0, 0], [5, 5], [True, True], offset=-0.5),
        -10.5,
    ),
    "equality and decimals": (
        model([[0.5, 0.25]], [(2, 2)], [1.5, 1], [0, 0], [8, 8], [True, False]),
        6.0,
    ),
    "no rows": (model([], [], [1, -2], [-1, 0], [4, 3], [True, False]), -7.0),
    "no objective": (
        model([[1, 1]], [(1, 1)], [0, 0], [0, 0], [1, 1], [True, True], offset=3),
        3.0,
    ),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_optima(solver):
    answers = run_adapter(solver, [Case(m) for m, _ in KNOWN.values()])
    for (name, (m, optimum)), (result, _) in zip(KNOWN.items(), answers, strict=True):
        assert result.reason == "optimal", name
        assert result.limit is None
        assert result.primal_bound == pytest.approx(optimum, abs=1e-6), name
        assert result.dual_bound == pytest.approx(optimum, abs=1e-6), name
        assert result.dual_bound_from
        assert m.cost @ result.values + m.offset == pytest.approx(optimum, abs=1e-6), name
        activity = m.matrix @ result.values
        assert (activity >= m.row_lower - 1e-6).all()
        assert (activity <= m.row_upper + 1e-6).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_self_check_passes(solver):
    code = f"from moeopt.solvers import {solver} as a; assert a.self_check() is None; a.version()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_self_check_fails_on_a_wrong_optimum():
    ((right, _),) = run_adapter("highs", [Case(probe_model())])
    assert probe_problem("highs", right) is None
    right.primal_bound = 15.0
    assert "15" in probe_problem("highs", right)


def test_the_known_bad_version_is_refused():
    code = (
        "from moeopt.solvers import highs; highs.version = lambda: '1.14.0'\n"
        "print(highs.self_check())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "1.14.0" in out.stdout


@pytest.mark.parametrize("solver", SOLVERS)
def test_infeasible_is_a_result(solver):
    impossible = model([[2, 2]], [(3, 3)], [1, 1], [0, 0], [5, 5], [True, True])
    nothing_left = model([[1.0]], [(0, 1)], [1], [0.2], [0.8], [True])
    for result, _ in run_adapter(solver, [Case(impossible), Case(nothing_left)]):
        assert result.reason == "infeasible"
        assert result.values is None
        assert result.dual_bound is None


def test_highs_unbounded():
    m = model([[1, -1]], [(0, INF)], [-1, 0], [0, 0], [INF, INF], [True, True])
    ((result, _),) = run_adapter("highs", [Case(m)])
    assert result.reason in ("unbounded", "infeasible_or_unbounded")


def test_highs_model_without_columns():
    answers = run_adapter(
        "highs",
        [
            Case(model([], [(0, 1)], [], [], [], [], offset=2)),
            Case(model([], [(1, 1)], [], [], [], [])),
        ],
    )
    assert answers[0][0].primal_bound == answers[0][0].dual_bound == 2
    assert answers[1][0].reason == "infeasible"


# --- LPs


def test_highs_lp_bound_is_recomputed_from_the_duals():
    pytest.importorskip("moeopt.safe_bound")
    lp = makespan(2, 8, 3, 0.1, seed=1).relax()
    top = model(
        [[1, 2], [3, 1]],
        [(-INF, 4), (-INF, 6)],
        [1, 1],
        [0, 0],
        [9, 9],
        [False] * 2,
        offset=5,
        sense=-1,
    )
    for m, (result, _) in zip((lp, top), run_adapter("highs", [Case(lp), Case(top)]), strict=True):
        assert result.reason == "optimal"
        assert result.row_dual.shape == m.row_lower.shape
        assert "exact" in result.dual_bound_from
        assert m.sense * result.dual_bound <= m.sense * result.primal_bound + 1e-9
        assert result.dual_bound == pytest.approx(result.primal_bound, rel=1e-7)


# --- settings


@pytest.mark.parametrize(
    ("solver", "options", "text"),
    [
        ("highs", {"time_limt": 3.0}, "did you mean time_limit"),
        ("highs", {"threads": 1.5}, "threads = 1.5"),
        ("highs", {"mip_feasibility_tolerance": 1e-13}, "mip_feasibility_tolerance"),
        ("highs", {"solver": "hippo"}, "solver = 'hippo'"),
        ("cpsat", {"cp_model_preslove": False}, "did you mean cp_model_presolve"),
        ("cpsat", {"cp_model_presolve": 0}, "cp_model_presolve = 0"),
        ("cpsat", {"search_branching": "FIXED"}, "search_branching"),
        ("cpsat", {"num_workers": 2.5}, "num_workers = 2.5"),
        ("cpsat", {"parse_text_format": "x"}, "parse_text_format"),
        ("cpsat", {"fix_variables_to_their_hinted_value": True}, "prove nothing"),
    ],
)
def test_options_are_strict(solver, options, text):
    with pytest.raises(InputError, match=text):
        run_adapter(solver, [Case(probe_model(), SolveSettings(options=options))])


def test_every_wrong_option_gets_a_line():
    with pytest.raises(InputError) as caught:
        run_adapter("highs", [Case(probe_model(), SolveSettings(options={"a": 1, "b": 2}))])
    assert len(caught.value.problems) == 2


def test_right_options_are_taken():
    run_adapter(
        "highs",
        [
            Case(
                probe_model(), SolveSettings(options={"presolve": "off", "mip_heuristic_effort": 0})
            )
        ],
    )
    options = {
        "search_branching": "FIXED_SEARCH",
        "linearization_level": 2,
        "cp_model_presolve": False,
        "extra_subsolvers": "default_lp,quick_restart",
    }
    run_adapter("cpsat", [Case(probe_model(), SolveSettings(options=options))])


def test_cpsat_has_no_node_limit():
    with pytest.raises(InputError, match="node limit"):
        run_adapter("cpsat", [Case(probe_model(), SolveSettings(node_limit=3))])


def test_cpsat_refuses_what_it_cannot_represent():
    m = model([[1, -1]], [(-INF, 0)], [-1, -1], [0, 0], [1, INF], [True, False])
    with pytest.raises(InputError, match="no finite bounds are known for column 1"):
        run_adapter("cpsat", [Case(m)])


@pytest.mark.parametrize("solver", SOLVERS)
def test_time_limit_is_kept_with_a_valid_bound(solver):
    hard = makespan(4, 24, 6, 0.0123456789, seed=2)
    ((result, events),) = run_adapter(
        solver, [Case(hard, SolveSettings(time_limit_s=1.5, gap=0.0))]
    )
    assert result.reason == "feasible"
    assert result.limit == "time"
    assert result.seconds < 8
    assert result.dual_bound <= result.primal_bound
    assert any(e.values is not None for e in events)
    primal = [e.primal_bound for e in events if e.values is not None]
    assert primal == sorted(primal, reverse=True)
    assert all(e.dual_bound <= result.primal_bound for e in events if e.dual_bound is not None)


def test_no_time_at_all_proves_nothing_wrong():
    """An unset bound of CP-SAT is 0, above the optimum of -10.5."""
    negative = KNOWN["negative objective"][0]
    for solver in SOLVERS:
        ((result, _),) = run_adapter(solver, [Case(negative, SolveSettings(time_limit_s=1e-9))])
        assert result.dual_bound is None or result.dual_bound <= -10.5


def test_highs_node_limit():
    ((result, _),) = run_adapter(
        "highs", [Case(makespan(2, 16, 4, 1.0, seed=0), SolveSettings(node_limit=1))]
    )
    assert result.limit == "nodes"


@pytest.mark.parametrize("solver", SOLVERS)
def test_stop_ends_the_search(solver):
    hard = makespan(4, 24, 6, 0.0123456789, seed=2)
    ((result, _),) = run_adapter(solver, [Case(hard, SolveSettings(time_limit_s=30), stop=True)])
    assert result.limit == "interrupted"
    assert result.seconds < 10


@pytest.mark.parametrize("solver", SOLVERS)
def test_log_is_appended(solver, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    run_adapter(solver, [Case(knapsack(), SolveSettings(time_limit_s=5), log_path=str(log))])
    text = log.read_text()
    assert text.startswith("before\n")
    assert len(text) > 200


@pytest.mark.parametrize("solver", SOLVERS)
def test_partial_start_is_used(solver):
    """A good plan is given by its integer columns; the first incumbent must be it."""
    m = makespan(3, 16, 4, 0.0123456789, seed=4)
    ((best, _),) = run_adapter("cpsat", [Case(m, SolveSettings(time_limit_s=2, threads=8))])
    start = best.values.copy()
    start[~m.integer] = np.nan
    ((result, events),) = run_adapter(solver, [Case(m, SolveSettings(time_limit_s=1), start=start)])
    first = next(e for e in events if e.values is not None)
    assert first.primal_bound == pytest.approx(best.primal_bound, rel=1e-5)
    assert result.primal_bound <= first.primal_bound + 1e-6


def test_highs_reports_no_bound_of_the_start_it_completes():
    """It completes a partial start by a solve of its own, which is another problem."""
    problem = makespan(2, 12, 3, 1.0, seed=3)
    problem = replace(problem, integer=np.ones(len(problem.cost), dtype=bool))
    start = np.full(len(problem.cost), np.nan)
    start[: 2 * 12 * 3] = np.eye(3)[np.zeros(24, dtype=int)].ravel()  # all on the first GPU
    settings = SolveSettings(node_limit=1, time_limit_s=30.0)
    [(result, events)] = run_adapter("highs", [Case(problem, settings, start)])
    assert result.dual_bound is not None
    bounds = [event.dual_bound for event in events if event.dual_bound is not None]
    assert max(bounds, default=0.0) <= result.dual_bound * (1 + 1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gap_is_obeyed(solver):
    m = knapsack()
    loose, tight = run_adapter(
        solver, [Case(m, SolveSettings(gap=0.2)), Case(m, SolveSettings(gap=0.0))]
    )
    for (result, _), gap in ((loose, 0.2), (tight, 0.0)):
        assert result.reason == "optimal"
        assert abs(result.dual_bound - result.primal_bound) <= gap * abs(result.primal_bound) + 1e-9
    assert loose[0].nodes <= tight[0].nodes or solver == "cpsat"


def test_an_error_in_a_callback_comes_out():
    code = """
import sys, threading
sys.path[:0] = ["tests"]
from adapter_process import makespan
from moeopt.solvers.base import SolveSettings
import importlib
def emit(progress): raise RuntimeError("mine")
a = importlib.import_module("moeopt.solvers." + sys.argv[1])
try:
    model, settings = makespan(3, 16, 4, 0.1, seed=0), SolveSettings(time_limit_s=20)
    a.solve(model, settings, None, emit, threading.Event(), None)
except RuntimeError as error:
    print(error)
"""
    for solver in SOLVERS:
        out = subprocess.run(
            [sys.executable, "-c", code, solver],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert out.stdout == "mine\n"


def test_adapters_import_no_solver():
    code = """
import sys
import moeopt.solvers.highs, moeopt.solvers.cpsat, moeopt.solvers.supervise, moeopt.solvers.worker
import moeopt.solvers.native
assert not {"highspy", "ortools", "pyomo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
