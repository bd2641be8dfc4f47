"""Solves a list of jobs with one solver in this process: ``python solve_many.py SOLVER IN OUT``.

Starting a worker for each of hundreds of tiny programs would take longer than solving them; the
adapters and formulations are the same as in the worker.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from pathlib import Path

from moeopt.catalog import load_formulation
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.linear import Values
from moeopt.solvers.base import SolveSettings


def run(adapter, data, name, relax):
    formulation = load_formulation(name)
    threads = 8 if adapter.NAME == "cpsat" else 1  # CP-SAT is made for its portfolio
    settings = SolveSettings(time_limit_s=120.0, gap=0.0, threads=threads)
    nothing = (lambda progress: None, threading.Event(), None)
    if hasattr(formulation, "build_cpsat"):
        native = formulation.build_cpsat(data)
        result = adapter.solve_native(native, settings, None, *nothing)
        found = result.values is not None
        plan = native.solution(adapter.reader(result.values)) if found else None
    else:
        with declarative():
            pyomo_model = formulation.build(data)
        model = compile_model(pyomo_model)
        result = adapter.solve(model.relax() if relax else model, settings, None, *nothing)
        plan = None
        if result.values is not None and not relax:
            plan = formulation.solution(Values(model, result.values), data)
    return result.reason, result.primal_bound, result.dual_bound, plan


def main(solver: str, jobs_file: str, answers_file: str) -> None:
    adapter = importlib.import_module(f"moeopt.solvers.{solver}")
    jobs = pickle.loads(Path(jobs_file).read_bytes())
    answers = [run(adapter, *job) for job in jobs]
    Path(answers_file).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
