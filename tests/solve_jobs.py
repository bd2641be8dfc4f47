"""Runs many tiny jobs with each solver, each solver in one process of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from moeopt.catalog import formulation_names, is_native, load_formulation

HERE = Path(__file__).parent


def solve_jobs(folder, jobs):
    """Answers of jobs (solver, data, formulation, relax), in order, as solve_many.py gives them."""
    running = {}
    for solver in ("highs", "cpsat"):
        mine = [job[1:] for job in jobs if job[0] == solver]
        if not mine:
            continue
        inputs, outputs = folder / f"{solver}.in", folder / f"{solver}.out"
        inputs.write_bytes(pickle.dumps(mine))
        command = [sys.executable, str(HERE / "solve_many.py"), solver, str(inputs), str(outputs)]
        running[solver] = (subprocess.Popen(command), outputs)
    answers = {}
    for solver, (process, outputs) in running.items():
        assert process.wait() == 0
        answers[solver] = iter(pickle.loads(outputs.read_bytes()))
    return [next(answers[job[0]]) for job in jobs]


def formulations_of(data):
    """(formulation, solver) pairs that can solve ``data``; relaxations cannot."""
    pairs = []
    for name in formulation_names(data.problem):
        module = load_formulation(name)
        if module.KIND == "exact" and module.supports(data) is None:
            pairs += [(name, s) for s in (["cpsat"] if is_native(module) else ["highs", "cpsat"])]
    return pairs
