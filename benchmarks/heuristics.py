"""Values and times of the heuristics on the shipped instances.

    python benchmarks/heuristics.py [--layers 3] [--time-limit 60] [--only gpt-oss]

Writes ``benchmarks/results/heuristics.csv`` and ``.md``. Seconds are processor seconds of all
threads, then wall seconds, both after the kernels were compiled.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.heuristics import greedy
from moeopt.heuristics.anneal import anneal
from moeopt.heuristics.anneal_search import Search
from moeopt.heuristics.capacity import room, slots, spread
from moeopt.heuristics.placement import place
from moeopt.heuristics.replication import replicate
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.solution import Solution

RESULTS = Path(__file__).parent / "results"
CASES = [
    ("dbrx_16x4_seed0", "placement", 4),
    ("dbrx_16x4_seed1", "placement", 4),
    ("dbrx_16x4_seed2", "placement", 4),
    *[("dbrx_16x4_seed0_5slots", "replication", s) for s in (5, 6, 7, 8)],
    *[("dbrx_16x4_seed1", "replication", s) for s in (5, 6, 7, 8)],
    *[("dbrx_16x4_seed2", "replication", s) for s in (5, 6, 7, 8)],
    ("gpt-oss-20b_l10_8gpu", "placement", 4),
    ("gpt-oss-20b_l10_4gpu", "placement", 8),
    ("gpt-oss-20b_l10_8gpu_5slots", "replication", 5),
    ("gpt-oss-20b_8gpu", "placement", 4),
    ("gpt-oss-20b_4gpu", "placement", 8),
    ("gpt-oss-20b_8gpu_5slots", "replication", 5),
    ("gpt-oss-20b_8gpu_5slots", "replication", 6),
    ("deepseek-v2-lite_8gpu", "placement", 8),
]
Method = Callable[[ProblemData], np.ndarray | None]


def descent(data: ProblemData) -> np.ndarray | None:
    """Descend from an even spread."""
    start = spread(data)
    if start is None:
        return None
    per_layer = min(slots(data), data.experts)
    many = data.problem == "replication"
    search = Search(
        data.scenarios, data.experts, data.gpus, per_layer, room(data), replicas=many, seed=0
    )
    search.load(start)
    search.descend()
    return search.hosts()


def methods(time_limit_s: float) -> dict[str, Method]:
    """The heuristics by name."""

    def whole(data: ProblemData) -> np.ndarray | None:
        heuristic = place if data.problem == "placement" else replicate
        plan = heuristic(data, time_limit_s=time_limit_s)
        return None if plan is None else plan.hosts_array(data.gpus)

    return {
        "contiguous": greedy.contiguous,
        "random": greedy.random,
        "greedy": greedy.greedy,
        "descent": descent,
        "anneal": lambda data: anneal(data, time_limit_s=time_limit_s),
        "all": whole,
    }


def first_layers(data: ProblemData, count: int) -> ProblemData:
    """Return the data of the first layers only; without shared memory."""
    count = min(count, data.layers)
    return replace(
        data,
        layers=count,
        scenarios=data.scenarios[:count],
        load=data.load[:count],
        free_mib=None,
        layer_numbers=data.layer_numbers[:count],
    )


def rows(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One row a case and method."""
    table: list[dict[str, object]] = []
    for name, problem, per_layer in CASES:
        if arguments.only not in name or arguments.problem not in problem:
            continue
        data = replace(prepare(read_instance(name), problem), slots=per_layer)
        data = first_layers(data, arguments.layers)
        for method, make in methods(arguments.time_limit).items():
            cpu, wall = time.process_time(), time.monotonic()
            hosts = make(data)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            if hosts is None:
                continue
            report = check_solution(data, Solution.from_arrays(data, hosts))
            assert not report.violations, report.violations
            assert report.objective is not None
            row: dict[str, object] = {
                "instance": name,
                "problem": problem,
                "slots": per_layer,
                "layers": data.layers,
                "method": method,
                "mean layer time": f"{report.objective / data.layers:.6f}",
                "cpu s": f"{cpu:.2f}",
                "wall s": f"{wall:.2f}",
            }
            print(*row.values(), flush=True)
            table.append(row)
    return table


def main() -> None:
    """Run the cases; write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1000, help="only the first layers")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds a case and method")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    parser.add_argument("--problem", default="", help="placement or replication")
    parser.add_argument("--output", default="heuristics", help="name of the tables")
    arguments = parser.parse_args()
    for problem, name in (("placement", "dbrx_16x4_seed0"), ("replication", "dbrx_16x4_seed0")):
        warm = prepare(read_instance(name), problem)  # compile
        (place if problem == "placement" else replicate)(warm, time_limit_s=60, iterations=10)
    table = rows(arguments)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{arguments.output}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    lines = ["| " + " | ".join(table[0]) + " |", "|" + " --- |" * len(table[0])]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in table]
    (RESULTS / f"{arguments.output}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
