"""One process a solve: it answers, and whatever happens to it the parent lives and knows why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from moeopt.problem import LayerTime, ProblemData
from moeopt.solution import Solution
from moeopt.solvers import supervise
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import run_job

DATA = ProblemData(
    name="tiny",
    sha256="0" * 64,
    problem="placement",
    layers=1,
    experts=4,
    top_k=2,
    gpus=2,
    expert_mib=1.0,
    free_mib=None,
    slots=2,
    layer_time=LayerTime(),
    scenarios=(),
    load=np.array([[9.0, 5.0, 4.0, 2.0]]),
    gpu_kind=np.zeros(2, dtype=np.int64),
)

#: Balance loads on two GPUs: minimise the fuller one; the optimum of 9 5 4 2 is 11 with two each.
HEAD = """
import os, signal, time
import numpy as np
import pyomo.environ as pyo
from moeopt.solution import Solution

PROBLEM, KIND = "placement", "exact"

def supports(data):
    return None
"""
BUILD = """
def build(data):
    m = pyo.ConcreteModel()
    m.E = pyo.RangeSet(0, data.experts - 1)
    m.G = pyo.RangeSet(0, data.gpus - 1)
    m.w = pyo.Param(m.E, initialize=dict(enumerate(data.load[0].tolist())))
    m.x = pyo.Var(m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(domain=pyo.NonNegativeReals, bounds=(0, 100))
    m.hosted = pyo.Constraint(m.E, rule=lambda m, e: sum(m.x[e, g] for g in m.G) == 1)
    m.slots = pyo.Constraint(m.G, rule=lambda m, g: sum(m.x[e, g] for e in m.E) <= 2)
    m.load_of = pyo.Constraint(
        m.G, rule=lambda m, g: sum(m.w[e] * m.x[e, g] for e in m.E) <= m.T)
    m.time = pyo.Objective(expr=m.T)
    return m
"""
SOLUTION = """
def solution(values, data):
    return Solution.from_arrays(data, values["x"][None] > 0.5, objective=float(values["T"]))
"""
START = """
def start(data, solution):
    return {"x": solution.hosts_array(data.gpus)[0].astype(float)}
"""
#: Takes far longer than any test: experts of random load on many GPUs.
HARD = (
    BUILD.replace("m.E = pyo", "n, rng = 40, np.random.default_rng(0)\n    m.E = pyo")
    .replace("data.experts - 1", "n - 1")
    .replace("data.gpus - 1", "6")
    .replace("data.load[0].tolist()", "(rng.integers(1000, 9999, n) / 7).tolist()")
    .replace("(0, 100)", "(0, 1e6)")
    .replace("<= 2)", "<= 7)")
)
HARD_SOLUTION = """
def solution(values, data):
    hosts = [[[int(g) for g in np.flatnonzero(row > 0.5)] for row in values["x"]]]
    return Solution(instance=data.name, problem=data.problem, hosts=hosts,
                    objective=float(values["T"]))
"""
NATIVE = """
def build_cpsat(data):
    from ortools.sat.python import cp_model
    from moeopt.solvers.native import NativeCp
    m = cp_model.CpModel()
    gpu = [m.new_int_var(0, data.gpus - 1, "") for _ in range(data.experts)]
    on = {}
    for e in range(data.experts):
        for g in range(data.gpus):
            on[e, g] = m.new_bool_var("")
            m.add(gpu[e] == g).only_enforce_if(on[e, g])
            m.add(gpu[e] != g).only_enforce_if(~on[e, g])
    top = m.new_int_var(0, 1000, "")
    for g in range(data.gpus):
        m.add(sum(on[e, g] for e in range(data.experts)) <= 2)
        m.add(top >= sum(int(10 * data.load[0, e]) * on[e, g] for e in range(data.experts)))
    m.minimize(top + 5)
    def solution(read):
        assert all(read(~on[0, g]) == 1 - read(on[0, g]) for g in range(data.gpus))
        hosts = [[[read(gpu[e])] for e in range(data.experts)]]
        return Solution(instance=data.name, problem=data.problem, hosts=hosts,
                        objective=read(top) / 10)
    def start(plan):
        return [(gpu[e], plan.hosts[0][e][0]) for e in range(data.experts)]
    return NativeCp(m, solution, bound=lambda value: (value - 5) / 10, start=start)
"""


def write(folder: Path, *parts: str) -> Path:
    path = folder / "mine.py"
    path.write_text("\n".join([HEAD, *parts]))
    return path


def hard(folder: Path) -> Path:
    return write(folder, HARD, HARD_SOLUTION)


def loads(solution: Solution) -> np.ndarray:
    return DATA.load[0] @ solution.hosts_array(2)[0]


def no_orphans(folder: Path) -> None:
    """No process has been left that knows the folder."""
    for process in psutil.process_iter(["cmdline", "status"]):
        assert "mark-" + folder.name not in (process.info["cmdline"] or [])


# --- it answers


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_a_formulation_is_solved(tmp_path, solver):
    events = []
    outcome = run_job(
        DATA,
        write(tmp_path, BUILD, SOLUTION),
        solver,
        SolveSettings(time_limit_s=60),
        on_progress=events.append,
    )
    assert outcome.cause == "finished", outcome.message
    assert outcome.message == ""
    assert outcome.result.reason == "optimal"
    assert outcome.result.dual_bound == pytest.approx(11, abs=1e-4)
    assert loads(outcome.solution).max() == 11
    assert outcome.size["columns"] == 9
    assert set(outcome.seconds) == {"start", "build", "compile", "solve"}
    assert outcome.peak_memory_mib > 20
    assert outcome.solver_version
    assert outcome.result.values is None
    assert events
    assert "highspy" not in sys.modules
    assert "ortools" not in sys.modules


def test_relaxation_has_a_bound_and_no_solution(tmp_path):
    outcome = run_job(DATA, write(tmp_path, BUILD, SOLUTION), "highs", SolveSettings(), relax=True)
    assert outcome.cause == "finished", outcome.message
    assert outcome.solution is None
    assert outcome.result.dual_bound == pytest.approx(10)
    assert outcome.result.row_dual is not None
    assert outcome.size["integers"] == 0


def test_native_model(tmp_path):
    path = write(tmp_path, NATIVE)
    plan = Solution(instance="tiny", problem="placement", hosts=[[[0], [1], [1], [0]]])
    events = []
    outcome = run_job(DATA, path, "cpsat", SolveSettings(), start=plan, on_progress=events.append)
    assert outcome.cause == "finished", outcome.message
    assert outcome.result.dual_bound == 11
    assert outcome.result.primal_bound == 11
    assert "native" in outcome.result.dual_bound_from
    assert loads(outcome.solution).max() == 11
    assert all(e.dual_bound is None or e.dual_bound <= 11 for e in events)
    assert "only cpsat" in run_job(DATA, path, "highs", SolveSettings()).input_error[0]
    relaxed = run_job(DATA, path, "cpsat", SolveSettings(), relax=True)
    assert "no relaxation" in relaxed.input_error[0]


def test_start_is_used(tmp_path):
    """With no time to search, the first incumbent is the start."""
    path = write(tmp_path, BUILD, SOLUTION, START)
    plan = Solution(instance="tiny", problem="placement", hosts=[[[0], [0], [1], [1]]])
    for solver in ("highs", "cpsat"):
        events = []
        outcome = run_job(
            DATA, path, solver, SolveSettings(), start=plan, on_progress=events.append
        )
        assert loads(outcome.solution).max() == 11
        assert next(e.primal_bound for e in events if e.primal_bound) == pytest.approx(14, abs=1e-4)


def test_wrong_start_is_reported(tmp_path):
    bad = START.replace('"x"', '"nothing"')
    plan = Solution(instance="tiny", problem="placement", hosts=[[[0], [0], [1], [1]]])
    outcome = run_job(
        DATA, write(tmp_path, BUILD, SOLUTION, bad), "highs", SolveSettings(), start=plan
    )
    assert outcome.cause == "crashed"
    assert "nothing" in outcome.message


@pytest.mark.parametrize(
    ("parts", "solver", "settings", "text"),
    [
        (("BUILD",), "highs", SolveSettings(options={"bogus": 1}), "no option 'bogus'"),
        (("BUILD",), "cpsat", SolveSettings(options={"bogus": 1}), "no option 'bogus'"),
        (("REFUSES", "BUILD"), "highs", SolveSettings(), "too odd"),
        (("OPEN",), "cpsat", SolveSettings(), "no finite bounds are known for T"),
    ],
)
def test_input_errors_pass_through(tmp_path, parts, solver, settings, text):
    source = {
        "BUILD": BUILD,
        "REFUSES": "def supports(data):\n    return 'too odd'\n",
        "OPEN": BUILD.replace("bounds=(0, 100)", "bounds=(0, None)").replace(
            "expr=m.T", "expr=-m.T"
        ),
    }
    path = write(tmp_path, *(source[part] for part in parts), SOLUTION)
    outcome = run_job(DATA, path, solver, settings)
    assert any(text in line for line in outcome.input_error), outcome
    assert outcome.result is None
    assert outcome.cause == "finished"


def test_prints_go_to_the_log(tmp_path):
    noise = 'print("noise from the formulation")\nos.write(1, b"noise {on} fd 1\\n")\n'
    log = tmp_path / "log"
    outcome = run_job(
        DATA, write(tmp_path, noise, BUILD, SOLUTION), "highs", SolveSettings(), log_path=log
    )
    assert outcome.cause == "finished", outcome.message
    assert "noise from the formulation" in log.read_text()
    assert "noise {on} fd 1" in log.read_text()
    assert "HiGHS" in log.read_text()


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_progress_only_improves(tmp_path, solver):
    events = []
    outcome = run_job(
        DATA, hard(tmp_path), solver, SolveSettings(time_limit_s=6), on_progress=events.append
    )
    assert outcome.cause == "finished", outcome.message
    assert outcome.result.limit == "time"
    primal = [e.primal_bound for e in events if e.primal_bound is not None]
    dual = [e.dual_bound for e in events if e.dual_bound is not None]
    assert primal == sorted(primal, reverse=True)
    assert dual == sorted(dual)
    assert [e.seconds for e in events] == sorted(e.seconds for e in events)
    assert primal
    assert outcome.solution is not None
    assert outcome.result.dual_bound <= outcome.result.primal_bound


# --- it is ended


def test_time_limit_includes_building(tmp_path):
    path = write(tmp_path, BUILD.replace("return m", "time.sleep(600)\n    return m"), SOLUTION)
    began = time.monotonic()
    outcome = run_job(DATA, path, "highs", SolveSettings(time_limit_s=4))
    assert time.monotonic() - began < 15
    assert outcome.result.reason == "no_solution_found"
    assert outcome.result.limit == "time"
    assert 0 < outcome.seconds["build"] < 6


#: Holds the interpreter, so that no thread of the worker can answer anything.
STUBBORN = """
signal.signal = lambda *a: None
import ctypes
ctypes.PyDLL(None).sleep(600)
"""


def test_a_worker_that_ignores_everything_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "KILL_AFTER_S", 1.0)
    path = write(tmp_path, STUBBORN, BUILD, SOLUTION)
    began = time.monotonic()
    outcome = run_job(DATA, path, "highs", SolveSettings(time_limit_s=4), grace_s=0.5)
    assert outcome.cause == "time"
    assert "killed" in outcome.message
    assert time.monotonic() - began < 15
    assert outcome.result is None


def test_memory_limit(tmp_path):
    eater = BUILD.replace(
        "return m", "hog = []\n    while True: hog.append(np.ones(2**20)); time.sleep(0.002)"
    )
    outcome = run_job(
        DATA,
        write(tmp_path, eater, SOLUTION),
        "highs",
        SolveSettings(memory_limit_mib=400, time_limit_s=60),
    )
    assert outcome.cause == "memory"
    assert 400 < outcome.peak_memory_mib < 2000


def test_memory_of_children_counts_and_they_do_not_survive(tmp_path):
    mark = "mark-" + tmp_path.name
    child = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c",
    "import os,time; os.setsid(); b = bytearray(500 * 2**20); time.sleep(600)", "{mark}"])
time.sleep(600)
"""
    outcome = run_job(
        DATA,
        write(tmp_path, child, BUILD, SOLUTION),
        "highs",
        SolveSettings(memory_limit_mib=450, time_limit_s=60),
    )
    assert outcome.cause == "memory"
    no_orphans(tmp_path)


def test_children_left_behind_are_ended(tmp_path):
    mark = "mark-" + tmp_path.name
    child = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{mark}"])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{mark}"],
                 start_new_session=True)
time.sleep(0.5)
"""
    outcome = run_job(DATA, write(tmp_path, child, BUILD, SOLUTION), "highs", SolveSettings())
    assert outcome.cause == "finished", outcome.message
    no_orphans(tmp_path)


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_killed_from_outside_keeps_the_incumbent_and_the_bound(tmp_path, solver):
    seen, killed = [], []

    def on_progress(event):
        seen.append(event)
        known = event.primal_bound is not None and event.dual_bound is not None
        if known and len(seen) > 3 and not killed:
            killed.append(True)
            worker = next(
                p for p in psutil.Process().children() if "moeopt.solvers.worker" in p.cmdline()
            )
            time.sleep(1.2)  # the incumbent is written at most twice a second
            worker.kill()

    outcome = run_job(
        DATA, hard(tmp_path), solver, SolveSettings(time_limit_s=60), on_progress=on_progress
    )
    assert outcome.cause == "killed"
    assert "SIGKILL" in outcome.message
    assert outcome.solution is not None
    assert outcome.result.reason == "feasible"
    assert outcome.result.dual_bound == seen[-1].dual_bound
    assert outcome.result.primal_bound == seen[-1].primal_bound
    assert outcome.result.dual_bound_from
    assert outcome.size["columns"] == 40 * 7 + 1


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_stop_hands_over_what_there_is(tmp_path, solver):
    stop = threading.Event()

    def on_progress(event):
        if event.primal_bound is not None:
            stop.set()

    began = time.monotonic()
    outcome = run_job(
        DATA,
        hard(tmp_path),
        solver,
        SolveSettings(time_limit_s=60),
        stop=stop,
        on_progress=on_progress,
    )
    assert time.monotonic() - began < 30
    assert outcome.cause == "interrupted"
    assert outcome.solution is not None
    assert outcome.result.limit == "interrupted"
    assert outcome.result.dual_bound is not None


def test_stop_before_the_solver_runs(tmp_path):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    path = write(tmp_path, BUILD.replace("return m", "time.sleep(600)\n    return m"), SOLUTION)
    outcome = run_job(DATA, path, "highs", SolveSettings(), stop=stop)
    assert outcome.cause == "interrupted"
    assert outcome.solution is None


def _run_in_child(tmp_path: Path, path: Path, then: str) -> subprocess.Popen[str]:
    """Start a parent process that runs the job and prints."""
    code = textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from test_worker import DATA, run_job, SolveSettings
        def on_progress(event):
            if event.primal_bound is not None:
                print("incumbent", flush=True)
        outcome = run_job(DATA, {str(path)!r}, "highs", SolveSettings(time_limit_s=60),
                          on_progress=on_progress)
        {then}
    """)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_ctrl_c_returns_the_incumbent(tmp_path):
    parent = _run_in_child(
        tmp_path, hard(tmp_path), "print(outcome.cause, outcome.solution is not None)"
    )
    assert parent.stdout.readline() == "incumbent\n"
    parent.send_signal(signal.SIGINT)
    rest, _ = parent.communicate(timeout=30)
    assert rest.splitlines()[-1] == "interrupted True"
    assert parent.returncode == 0


def test_a_killed_parent_takes_the_worker_with_it(tmp_path):
    parent = _run_in_child(tmp_path, hard(tmp_path), "pass")
    assert parent.stdout.readline() == "incumbent\n"
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    parent.stdout.close()


# --- it breaks


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("os._exit(7)", "exit status 7"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("raise RuntimeError('my own mistake')", "RuntimeError: my own mistake"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_crashes_are_told(tmp_path, damage, text):
    log = tmp_path / "log"
    path = write(tmp_path, BUILD.replace("return m", damage), SOLUTION)
    outcome = run_job(DATA, path, "highs", SolveSettings(), log_path=log)
    assert outcome.cause == "crashed"
    assert text in outcome.message
    assert outcome.result is None
    assert outcome.solution is None
    if "RuntimeError" in text:
        assert "Traceback" in log.read_text()


def test_a_solution_that_cannot_be_read_keeps_the_bound(tmp_path):
    path = write(tmp_path, BUILD, SOLUTION.replace("return", "raise KeyError('y')  #"))
    outcome = run_job(DATA, path, "highs", SolveSettings())
    assert outcome.cause == "crashed"
    assert "KeyError" in outcome.message
    assert outcome.result.dual_bound == pytest.approx(11)
    assert outcome.solution is None


def test_an_exception_of_the_caller_leaves_no_worker(tmp_path):
    def on_progress(event):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run_job(DATA, hard(tmp_path), "highs", SolveSettings(), on_progress=on_progress)
    assert not psutil.Process().children()
