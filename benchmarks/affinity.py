"""Affinity between layers: published methods and ours, certified gaps, the front against balance.

Run ``python benchmarks/affinity.py`` (``--pairs`` for the pairs of layers of gpt-oss-20b only,
``--methods`` for the methods and the front only). Plans are evaluated by the problem's own counts;
``lower`` values are proved, gaps certified. CPU seconds of one thread.
Writes benchmarks/results/affinity*.csv, affinity.md and affinity_front.svg.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moeopt import __version__
from moeopt.affinity.bounding import column_value, psd_value
from moeopt.affinity.data import AffinityData, IntArray, contiguous, pair_of
from moeopt.affinity.evaluate import evaluate
from moeopt.affinity.moetuner import moetuner_plan
from moeopt.affinity.search import find_plan
from moeopt.affinity.staged import exflow_plan, hierarchical_plan, refined
from moeopt.catalog import read_instance
from moeopt.kernels import compile_affinity
from moeopt.prepare import prepare
from moeopt.report.plot_style import COLOURS, figure_bytes, in_style, new_axes

RESULTS = Path(__file__).resolve().parent / "results"
#: Largest loads of a GPU over the mean, and steps of the semidefinite bound.
INSTANCES = {
    "gpt-oss-20b_8gpu_affinity": ((1.7, 1.4, 1.2, 1.1), 400),
    "gpt-oss-20b_2x4gpu_affinity": ((1.4, 1.2), 300),
    "deepseek-v2-lite_2x4gpu_affinity": ((), 150),
}
#: Random plans, walks of a search, and steps of the semidefinite bound of a pair of layers.
RANDOM, ROUNDS, STEPS = 5, 3, 600

Row = dict[str, Any]


def data_of(name: str) -> AffinityData:
    affinity = prepare(read_instance(name), "affinity").affinity
    assert affinity is not None
    return affinity


def timed(find: Callable[[], IntArray | None]) -> tuple[IntArray | None, float]:
    begin = time.process_time()
    found = find()
    return found, time.process_time() - begin


def describe(
    data: AffinityData, method: str, asked: str, place: IntArray, seconds: float, lower: float
) -> Row:
    report = evaluate(data, place)
    return {
        "method": method,
        "largest load asked": asked,
        "change GPU %": f"{100 * report.crossing_gpus:.2f}",
        "change node %": f"{100 * report.crossing_nodes:.2f}",
        "cost a token": f"{report.objective / report.total.sum():.4f}",
        "load max/mean, mean": f"{report.imbalance.mean():.3f}",
        "worst layer": f"{report.imbalance.max():.3f}",
        "above the bound %": f"{100 * (report.objective - lower) / report.objective:.2f}",
        "CPU s": f"{seconds:.1f}",
    }


def best_plan(data: AffinityData, start: IntArray | None = None) -> IntArray | None:
    """Our search, refined from its staged plan where that is better."""
    plan = find_plan(data, rounds=ROUNDS, start=start)
    staged = hierarchical_plan(data)
    if staged is not None:
        staged = refined(data, staged)
        if plan is None or evaluate(data, staged).objective < evaluate(data, plan).objective:
            plan = staged
    return plan


def methods(name: str) -> list[Row]:
    """All methods on one instance: free, at the loads of ExFlow's plan, and at given loads."""
    data = data_of(name)
    ratios, steps = INSTANCES[name]
    total = float(data.flow.sum())
    rows: list[Row] = []
    bounds: list[Row] = []

    def bounded(asked: str, given: AffinityData) -> float:
        bound = psd_value(given, steps=steps)
        cost = f"{math.floor(bound.value / total * 1e4) / 1e4:.4f}"
        row = {"method": "proved", "largest load asked": asked, "cost a token": cost}
        bounds.append(row | {"CPU s": f"{bound.seconds:.1f}"})
        print(name, *bounds[-1].values(), flush=True)
        return bound.value

    lower = bounded("any", data)

    def add(
        method: str, asked: str, find: Callable[[], IntArray | None], given: AffinityData
    ) -> IntArray | None:
        place, seconds = timed(find)
        if place is not None:
            rows.append(describe(data, method, asked, place, seconds, lower))
            print(name, *rows[-1].values(), flush=True)
        return place

    add("contiguous", "any", lambda: contiguous(data), data)
    for row in random_rows(data, lower):
        rows.append(row)
    add("MoETuner", "any", lambda: moetuner_plan(data), data)
    exflow = add("ExFlow", "any", lambda: exflow_plan(data), data)
    add("hierarchical", "any", lambda: hierarchical_plan(data), data)
    add("ours", "any", lambda: best_plan(data), data)
    assert exflow is not None
    same = replace(data, max_load=evaluate(data, exflow).imbalance)
    lower = bounded("as ExFlow, each layer", same)
    add("ours", "as ExFlow, each layer", lambda: best_plan(same, exflow), same)
    for ratio in ratios:
        given = replace(data, max_load=ratio)
        lower = bounded(f"{ratio:g}", given)
        add("hierarchical", f"{ratio:g}", partial(hierarchical_plan, given), given)
        add("ours", f"{ratio:g}", partial(best_plan, given), given)
    blank = dict.fromkeys(rows[0], "")
    return [*rows, *(blank | row for row in bounds)]


def random_rows(data: AffinityData, lower: float) -> list[Row]:
    """The random plan of median cost."""
    rng = np.random.default_rng(0)
    plans = []
    for _ in range(RANDOM):
        row = contiguous(data)[0]
        plans.append(np.stack([rng.permutation(row) for _ in range(data.layers)]))
    plans.sort(key=lambda plan: evaluate(data, plan).objective)
    return [describe(data, "random (median of 5)", "any", plans[RANDOM // 2], 0.0, lower)]


def pairs(name: str) -> list[Row]:
    """Every pair of layers alone: bound, best plan, gap."""
    data = data_of(name)
    rows = []
    for l in range(data.layers - 1):
        pair = pair_of(data, l)
        begin = time.process_time()
        found = column_value(pair)
        relaxed = psd_value(pair, steps=STEPS)
        bounded = time.process_time() - begin
        plan, seconds = timed(partial(find_plan, pair, rounds=ROUNDS))
        assert plan is not None
        upper = evaluate(pair, plan).objective
        if found.rows is not None and found.rows[0] is not None:
            upper = min(upper, evaluate(pair, found.rows[0]).objective)
        lower = max(found.value, relaxed.value)
        assert lower <= upper
        total = float(pair.flow.sum())
        rows.append(
            {
                "layers": f"{l}-{l + 1}",
                "contiguous %": f"{100 * evaluate(pair, contiguous(pair)).objective / total:.2f}",
                "upper %": f"{100 * upper / total:.3f}",
                "lower %": f"{100 * lower / total:.3f}",
                "gap %": f"{100 * (upper - lower) / upper:.3f}",
                "psd lower %": f"{100 * relaxed.value / total:.3f}",
                "bound CPU s": f"{bounded:.1f}",
                "search CPU s": f"{seconds:.1f}",
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def write(name: str, rows: list[Row]) -> None:
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(name: str) -> list[str]:
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def front(name: str) -> None:
    with (RESULTS / f"affinity_{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        load = row["load max/mean, mean"] or row["largest load asked"]
        if load[0].isalpha():  # a bound for any load, or for those of another plan
            continue
        point = (float(load), float(row["cost a token"]))
        points.setdefault(row["method"].split(" (")[0], []).append(point)
    (RESULTS / f"affinity_{name}.svg").write_bytes(figure_bytes(plot(name, points), "svg"))


@in_style
def plot(name: str, points: dict[str, list[tuple[float, float]]]) -> Figure:
    """Cost against the largest load: lines where a method has several points."""
    figure, (axes,) = new_axes()
    for colour, (method, found) in zip(COLOURS, points.items(), strict=False):
        found.sort()
        x, y = zip(*found, strict=True)
        line = "o-" if len(found) > 1 else "o"
        axes.plot(x, y, line, color=colour, markersize=3.5, label=method)
    axes.legend(frameon=False, fontsize=7)
    axes.set_xlabel("largest load of a GPU / mean (mean over layers)")
    axes.set_ylabel("weighted changes of GPU a token")
    axes.set_title(name)
    return figure


def page() -> None:
    text = [
        "# Affinity",
        "",
        f"moeopt {__version__}, {ROUNDS} walks a search. Made by `python benchmarks/affinity.py`.",
        "Shares are of tokens × pairs of experts (k² a token and pair of layers). `largest load",
        "asked`: of a GPU over the mean of its layer, in every layer; `proved` is a lower bound",
        "for all plans within it, `above the bound` the certified gap. CPU seconds of one thread.",
        "",
    ]
    for name in INSTANCES:
        if (RESULTS / f"affinity_{name}.csv").exists():
            text += [f"## {name}", "", *table(f"affinity_{name}"), ""]
            text += [f"![front](affinity_{name}.svg)", ""]
    if (RESULTS / "affinity_pairs.csv").exists():
        text += ["## Pairs of layers of gpt-oss-20b_8gpu_affinity, each alone", ""]
        text += table("affinity_pairs")
    (RESULTS / "affinity.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", action="store_true", help="pairs of layers only")
    parser.add_argument("--methods", nargs="*", choices=INSTANCES, help="methods only, of these")
    options = parser.parse_args()
    compile_affinity()
    everything = not options.pairs and options.methods is None
    RESULTS.mkdir(exist_ok=True)
    if everything or options.methods is not None:
        for name in options.methods or INSTANCES:
            write(f"affinity_{name}", methods(name))
            front(name)
            page()
    if everything or options.pairs:
        write("affinity_pairs", pairs(next(iter(INSTANCES))))
    page()


if __name__ == "__main__":
    main()
