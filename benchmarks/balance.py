"""Balance of 58 layers of 256 experts: plans, bounds, CPU seconds; the published heuristic too.

Run ``python benchmarks/balance.py`` (``--layers`` for fewer; ``--gpus`` for the cases with so many
GPUs only, other rows of the first table stay as they are). Loads are seeded: uniform, lognormal
(sigma 1) and Zipf (0.8, an order of the experts for each layer). Balancedness is the mean GPU load
over the largest, a mean over layers; upper values are the checker's, gaps are certified.
Writes benchmarks/results/balance.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from moeopt.balance import (
    Effort,
    balance_data,
    balance_front,
    check_balance,
    rebalance_experts,
    solve_balance,
)
from moeopt.balance.eplb import published_plan
from moeopt.balance.even import mean_largest

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = ("uniform", "lognormal", "zipf")
#: Slots, GPUs, nodes, groups, rule.
CASES = (
    (288, 32, 1, 1, "even"),
    (320, 64, 1, 1, "even"),
    (288, 96, 1, 1, "even"),
    (512, 256, 1, 1, "even"),
    (288, 32, 4, 8, "even"),
    (288, 96, 1, 1, "optimal"),
    (512, 256, 1, 1, "optimal"),
)
HEADER = [
    "slots",
    "gpus",
    "nodes",
    "groups",
    "rule",
    "loads",
    "published",
    "balancedness",
    "worst_layer",
    "gap_percent_mean",
    "gap_percent_max",
    "layers_below_published",
    "search_and_check_cpu_s",
]
MOVES_HEADER = ["budget_percent", "moved_percent", "balancedness"]
FAST_HEADER = ["slots", "gpus", "mode", "balancedness", "cpu_ms_a_layer"]


def loads(kind: str, layers: int, experts: int = 256) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.random((layers, experts))
    if kind == "lognormal":
        return rng.lognormal(0, 1, (layers, experts))
    return np.stack([rng.permutation(np.arange(1, experts + 1) ** -0.8) for _ in range(layers)])


def balancedness(weight: np.ndarray, plan: np.ndarray, gpus: int) -> float:
    """Of any plan, duplicates counted as copies."""
    data = balance_data(weight, gpus=gpus, replicas=plan.shape[1])
    largest = np.array([mean_largest(data, l, plan[l]) for l in range(data.layers)])
    return float((weight.sum(axis=1) / gpus / largest).mean())


def solve_case(case: tuple[int, int, int, int, str], kind: str, layers: int) -> list[Any]:
    replicas, gpus, nodes, groups, rule = case
    weight = loads(kind, layers)
    data = balance_data(weight, gpus=gpus, replicas=replicas, nodes=nodes, groups=groups, rule=rule)
    published = published_plan(weight, replicas, groups, nodes, gpus).slots
    begin = time.process_time()
    outcome = solve_balance(data)
    seconds = time.process_time() - begin
    theirs = np.array([mean_largest(data, l, published[l]) for l in range(layers)])
    balanced, gap = outcome.report.balancedness[0], outcome.gap * 100
    return [
        *case,
        kind,
        round(balancedness(weight, published, gpus), 4),
        round(float(balanced.mean()), 5),
        round(float(balanced.min()), 5),
        round(float(gap.mean()), 3),
        round(float(gap.max()), 3),
        int((outcome.report.per_layer > theirs * (1 + 1e-12)).sum()),
        round(seconds, 1),
    ]


def moves(layers: int) -> tuple[list[list[Any]], float]:
    """Lognormal loads on 32 GPUs, shifted by 20 %: balance against moved copies."""
    weight = loads("lognormal", layers)
    plan = solve_balance(balance_data(weight, gpus=32, replicas=288)).plan
    rng = np.random.default_rng(1)
    shifted = weight * rng.lognormal(0, 0.2, weight.shape)
    data = balance_data(shifted, gpus=32, replicas=288, previous=plan)
    shares = (0, 2, 5, 10, 20, 100)
    begin = time.process_time()
    points = balance_front(
        data, [plan.size * s // 100 for s in shares], Effort(rounds=4, steps=40_000)
    )
    seconds = time.process_time() - begin
    rows: list[list[Any]] = []
    for share, point in zip(shares, points, strict=True):
        report = check_balance(data, point.plan)
        assert report.violations == []
        assert report.moves == point.moves
        moved = round(100 * point.moves / plan.size, 1)
        rows.append([share, moved, round(float(report.balancedness.mean()), 4)])
    again = check_balance(data, published_plan(shifted, 288, 1, 1, 32).slots)
    assert again.moves is not None
    moved = round(100 * again.moves / plan.size, 1)
    rows.append(["published", moved, round(float(again.balancedness.mean()), 4)])
    return rows, seconds


def drop_in(layers: int) -> list[list[Any]]:
    rows = []
    for replicas, gpus in ((288, 32), (320, 64), (288, 96), (512, 256)):
        weight = loads("lognormal", layers)
        for fast in (True, False):
            begin = time.process_time()
            plan, _, _ = rebalance_experts(weight, replicas, 1, 1, gpus, fast=fast)
            seconds = time.process_time() - begin
            found = round(balancedness(weight, plan, gpus), 4)
            mode = "fast" if fast else "normal"
            rows.append([replicas, gpus, mode, found, round(1e3 * seconds / layers, 1)])
    return rows


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--gpus", type=int)
    chosen = parser.parse_args()
    layers = chosen.layers
    # Compiled before anything is measured.
    for replicas, gpus in ((288, 32), (512, 256)):
        for rule in ("even", "optimal"):
            data = balance_data(loads("zipf", 1), gpus=gpus, replicas=replicas, rule=rule)
            solve_balance(data, Effort(rounds=1, steps=100))
    known = {} if chosen.gpus is None else known_rows()
    rows = []
    for case in CASES:
        for kind in KINDS:
            again = chosen.gpus in (None, case[1])
            row = solve_case(case, kind, layers) if again else known[(*map(str, case), kind)]
            rows.append(row)
            print(*row, flush=True)
    fast = drop_in(layers)
    front, seconds = moves(layers)
    text = [
        "# Balance",
        "",
        f"{layers} layers of 256 experts, one thread. `python benchmarks/balance.py` makes this.",
        "`published` is the balancedness of the published heuristic under even split, on the same",
        "loads; gaps are (largest load − proved bound) / largest load of a layer, in percent.",
        "",
        *table(HEADER, rows),
        "",
        "## Drop-in `rebalance_experts`, lognormal loads",
        "",
        *table(FAST_HEADER, fast),
        "",
        "## Moves",
        "",
        "288 slots on 32 GPUs, lognormal loads times lognormal(0.2); in percent of all copies.",
        f"The whole front takes {seconds:.1f} s of CPU time.",
        "",
        *table(MOVES_HEADER, front),
        "",
    ]
    (RESULTS / "balance.md").write_text("\n".join(text), encoding="utf-8")
    with (RESULTS / "balance.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])


def known_rows() -> dict[tuple[str, ...], list[str]]:
    """Rows of the table there is, by case and loads."""
    with (RESULTS / "balance.csv").open(newline="", encoding="utf-8") as file:
        return {tuple(row[:6]): row for row in list(csv.reader(file))[1:]}


if __name__ == "__main__":
    main()
