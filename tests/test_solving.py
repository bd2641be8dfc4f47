"""solve(): plans are checked, bounds are bounds, and whatever happens ends in a record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import moeopt
from moeopt import running, solving
from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.errors import InputError, SolverError
from moeopt.prepare import prepare
from moeopt.solution import Solution

MIXTRAL = "mixtral-8x7b_4gpu_azure"


def solve(name, problem, **more):
    return moeopt.solve(name, problem=problem, time_limit_s=more.pop("time_limit_s", 30), **more)


@pytest.mark.parametrize(
    ("name", "problem", "optimum"),
    [
        ("smoke_placement_unit", "placement", 1.1),
        ("smoke_replication_pairs", "replication", 1.1),
        ("smoke_joint_two_waves", "joint", 95.0),
    ],
)
def test_default_way_proves_smoke_instances(name, problem, optimum):
    outcome = solve(name, problem)
    assert outcome.record.status == "optimal"
    assert outcome.upper_bound == pytest.approx(optimum, rel=1e-9)
    assert outcome.gap <= 1e-6
    assert outcome.record.lower_bound_from
    assert moeopt.check(name, outcome.solution).violations == []


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_a_formulation_and_a_solver_can_be_named(solver):
    outcome = solve(
        "smoke_replication_pairs", "replication", formulation="replication_matching", solver=solver
    )
    record = outcome.record
    assert (record.formulation, record.solver, record.status) == (
        "replication_matching",
        solver,
        "optimal",
    )
    assert record.kind == "exact"
    assert record.solver_version
    assert record.size["rows"] > 0
    assert {"build", "compile", "solve", "check", "total"} <= set(record.seconds)
    assert json.loads(record.json_line())["schema"] == "moeopt-record/1"


def test_an_own_formulation_file(tmp_path):
    source = Path(solving.__file__).parent.parent / "models" / "placement_assignment.py"
    mine = tmp_path / "mine.py"
    mine.write_text(source.read_text())
    outcome = solve("smoke_placement_unit", "placement", formulation=mine, solver="highs")
    assert outcome.record.status == "optimal"
    assert outcome.record.formulation == str(mine)


def test_joint_on_mixtral_has_a_checked_plan_and_a_bound():
    """The main job, with little time; the README's command gives it more."""
    outcome = solve(MIXTRAL, "joint", time_limit_s=12)
    record = outcome.record
    assert record.status in ("feasible", "optimal")
    assert record.violations == []
    assert 0 < record.lower_bound <= record.upper_bound
    assert record.gap < 0.01
    again = moeopt.check(MIXTRAL, outcome.solution)
    assert again.violations == []
    assert again.objective == pytest.approx(record.upper_bound, rel=1e-12)


def test_infeasible_says_why():
    outcome = solve("smoke_replication_infeasible", "replication")
    assert outcome.record.status == "infeasible"
    assert outcome.solution is None
    assert any("100 MiB are missing" in line for line in outcome.record.reasons)


def test_infeasible_found_by_the_solver_says_so(monkeypatch):
    monkeypatch.setattr(solving, "explain_infeasible", lambda data: [])
    outcome = solve(
        "smoke_replication_infeasible",
        "replication",
        formulation="replication_matching",
        solver="highs",
    )
    assert outcome.record.status == "infeasible"
    assert "exhaustion" in outcome.record.reasons[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem": "placment"}, "no problem 'placment'"),
        ({"formulation": "replication_matchin"}, "did you mean replication_matching"),
        ({"formulation": "joint_compact"}, "joint_compact is for joint, not for replication"),
        ({"solver": "gurobbi"}, "no solver 'gurobbi'"),
        ({"formulation": "replication_cp", "solver": "highs"}, "only cpsat"),
        ({"time_limit_s": -1}, "time limit must be positive"),
        ({"gap": 1.5}, "gap must be"),
        (
            {
                "formulation": "replication_matching",
                "solver": "highs",
                "options": {"mip_rel_gapp": 1},
            },
            "mip_rel_gapp",
        ),
    ],
)
def test_wrong_words_are_input_errors(changes, words):
    arguments = {"problem": "replication"} | changes
    with pytest.raises(InputError, match=words):
        solve("smoke_replication_pairs", arguments.pop("problem"), **arguments)


def test_a_lower_bound_above_a_plan_is_an_error(monkeypatch):
    from moeopt.bounds import Bound

    monkeypatch.setattr(
        running, "combinatorial_bounds", lambda data: [Bound("wrong", 1e9, "none", 0.0)]
    )
    with pytest.raises(SolverError, match="exceeds a checked plan"):
        solve("smoke_replication_pairs", "replication")


def test_a_plan_that_the_checker_rejects_is_not_used(monkeypatch):
    """A solver whose plan breaks a rule gives no upper bound, whatever it claims."""
    good = check_solution

    def reject(data, plan):
        report = good(data, plan)
        from moeopt.checker import Violation

        report.violations.append(Violation("slots_exceeded", "layer 0", 1.0, "made up"))
        return report

    monkeypatch.setattr(running, "check_solution", reject)
    outcome = solve(
        "smoke_replication_pairs",
        "replication",
        formulation="replication_matching",
        solver="highs",
    )
    assert outcome.record.status == "error"
    assert outcome.record.upper_bound is None
    assert outcome.record.violations[0]["kind"] == "slots_exceeded"


def test_a_start_is_checked_and_kept():
    data = prepare(read_instance("smoke_placement_unit"), "placement")
    outcome = solve("smoke_placement_unit", "placement")
    warm = Solution.from_arrays(data, outcome.solution.hosts_array(data.gpus))
    again = solve(
        "smoke_placement_unit",
        "placement",
        formulation="placement_assignment",
        solver="highs",
        start=warm,
    )
    assert again.record.status == "optimal"
    assert again.record.upper_bound == pytest.approx(1.1)


def _workers():
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "moeopt.solvers.worker" in " ".join(process.cmdline())
    ]


def _when_a_worker_searches(action, seen):
    """Call ``action`` on the worker once the search has told something."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not seen.is_set():
        time.sleep(0.05)
    for process in _workers():
        action(process)


def test_a_killed_worker_gives_a_record():
    seen = threading.Event()

    def on_progress(state):
        if state.phase == "joint_compact" and state.lower_bound is not None and _workers():
            seen.set()

    killer = threading.Thread(
        target=_when_a_worker_searches, args=(lambda process: process.kill(), seen)
    )
    killer.start()
    outcome = solve(
        MIXTRAL,
        "joint",
        formulation="joint_compact",
        solver="highs",
        on_progress=on_progress,
        time_limit_s=60,
    )
    killer.join()
    assert outcome.record.status == "error"
    assert any("killed from outside by SIGKILL" in note for note in outcome.record.notes)
    assert outcome.record.lower_bound > 0  # the combinatorial bound needs no worker
    assert not _workers()


def test_memory_limit_is_told():
    outcome = solve(
        MIXTRAL, "joint", formulation="joint_compact", solver="highs", memory_limit_mib=60
    )
    assert outcome.record.limit == "memory"
    assert outcome.record.status == "no_solution_found"


def test_ctrl_c_keeps_and_writes_the_best_plan(tmp_path):
    plan = tmp_path / "plan.json"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "moeopt",
            "solve",
            MIXTRAL,
            "--problem",
            "joint",
            "--time-limit",
            "120",
            "--json",
            "-o",
            str(plan),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("joint_work"):
            break
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    record = json.loads(output)
    assert record["interrupted"] is True
    assert record["upper_bound"] is not None
    report = moeopt.check(MIXTRAL, plan)
    assert report.violations == []
    assert report.objective == pytest.approx(record["upper_bound"], rel=1e-12)


def test_no_solver_is_loaded_by_the_parent():
    program = (
        "import sys, moeopt\n"
        "moeopt.solve('smoke_replication_pairs', problem='replication')\n"
        "bad = [m for m in ('highspy', 'ortools') if m in sys.modules]\n"
        "sys.exit(', '.join(bad) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
