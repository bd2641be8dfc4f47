"""GRACE-MoE's three steps, each replaced by others: traffic, balance, memory and bounds.

Run ``python benchmarks/grace.py`` (``--seeds``, ``--trace`` for fewer). Shipped traces on 2 nodes
of 4 GPUs; grouping and replication are fitted on half of the requests, everything is measured on
the other half in batches of 512 tokens; each seed is another split, deal of the requests and
sequence of random numbers. Writes benchmarks/results/grace_TRACE.csv (all combinations) and .md.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from moeopt.grace import (
    GROUPINGS,
    REPLICATIONS,
    ROUTINGS,
    Nodes,
    Outcome,
    Settings,
    means,
    profile,
    run,
)
from moeopt.grace.grouping_published import CANDIDATES, ratio_curve
from moeopt.make.traces_shipped import Trace, read_trace
from moeopt.rounding_text import lower_text

RESULTS = Path(__file__).resolve().parent / "results"
TRACES = ("gpt-oss-20b", "deepseek-v2-lite")
NODES = Nodes(2, 4)
STEPS = ("grouping", "replication", "routing")
BATCHES = (64, 512, 2048)
#: Sizes of the published groups: on GPUs, on nodes.
RATIOS = ((0.0, 0.0), (0.15, 0.15), (0.15, None), (0.5, None), (float("inf"), None))
Row = dict[str, Any]
LEGEND = (
    "Traffic is for each token and layer. same GPU, node, remote: pairs (token, expert) by where",
    "they are computed; least remote: no plan with as many copies has fewer. node sends, GPU",
    "sends: copies of tokens under hierarchical communication, to other nodes and within nodes;",
    "least on plan: node sends that no routing on this plan undercuts. max/mean: largest load over",
    "the mean, a mean over batches and layers; least max/mean: no routing on this plan is below.",
    "deviation: standard deviation over mean of the loads. copies: experts held over experts;",
    "fullest: experts on the fullest GPU over the mean without copies (memory).",
)


def shown(row: Row) -> Row:
    """The columns of the tables; bounds rounded down."""
    return {
        "same GPU": f"{row['same_gpu']:.3f}",
        "node": f"{row['same_node']:.3f}",
        "remote": f"{row['remote']:.3f}",
        "least remote": lower_text(row["least_remote"], 4),
        "node sends": f"{row['node_sends']:.3f}",
        "least on plan": lower_text(row["least_node_sends"], 4),
        "GPU sends": f"{row['gpu_sends']:.3f}",
        "max/mean": f"{row['imbalance']:.3f}",
        "least max/mean": lower_text(row["least_imbalance"], 4),
        "deviation": f"{row['deviation']:.3f}",
        "copies": f"{row['copies']:.3f}",
        "fullest": f"{row['fullest']:.3f}",
    }


def table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["(none)"]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def front(rows: Sequence[Row], most_memory: float) -> list[Row]:
    """Combinations within so much memory that no other beats in node sends and largest load."""
    fitting = [r for r in rows if r["fullest"] <= most_memory]
    best, found = float("inf"), []
    for row in sorted(fitting, key=lambda r: (r["node_sends"], r["imbalance"])):
        if row["imbalance"] < best - 1e-9:
            best = row["imbalance"]
            found.append(row)
    return found


def pick(rows: Sequence[Row], **wanted: str) -> list[Row]:
    return [r for r in rows if all(r[step] == name for step, name in wanted.items())]


def of_trace(trace: Trace, seeds: int) -> None:
    """Run all combinations; write the tables after each seed: a run cut short leaves some."""
    everything = Settings(
        NODES, tuple(GROUPINGS), tuple(REPLICATIONS), tuple(ROUTINGS), seeds=seeds
    )
    outcomes: list[Outcome] = []
    side: list[str] = []
    begin, spent = time.process_time(), 0.0
    for seed, found in groupby(run(trace, everything), key=lambda outcome: outcome.seed):
        outcomes += found
        spent += time.process_time() - begin
        if seed == 0:
            one = replace(everything, seeds=1)
            side = [*ratios(trace, one), *readings(trace, one)]
        write(trace.name, means(outcomes), side, spent)
        begin = time.process_time()


def write(name: str, rows: list[Row], side: list[str], seconds: float) -> None:
    """Write all combinations as CSV, and the page."""
    text = [
        f"# GRACE-MoE, step by step: {name}",
        "",
        f"`python benchmarks/grace.py` makes this. {len(rows)} combinations on 2 nodes of 4",
        "GPUs, batches of 512 tokens; fitted on half of the requests, measured on the other",
        f"half; seeds: {rows[0]['seeds']}, means. All rows are in the CSV file beside;",
        f"{seconds:.0f} s of CPU time.",
        "",
        *LEGEND,
        "",
        f"Python {sys.version.split()[0]}, numpy {version('numpy')}, numba {version('numba')}, "
        f"scipy {version('scipy')}.",
        *sections(rows),
        *side,
    ]
    print("\n".join(text), flush=True)
    path = RESULTS / f"grace_{name}.csv"
    path.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def section(title: str, chosen: Sequence[Row], *steps: str) -> list[str]:
    lines = [{**{s: r[s] for s in steps}, **shown(r)} for r in chosen]
    return ["", f"## {title}", "", *table(lines)]


def sections(rows: Sequence[Row]) -> list[str]:
    """The tables that are read first."""
    published = pick(rows, grouping="grace", replication="grace", routing="grace")[0]
    text = section("Grouping, without copies", pick(rows, replication="none"), "grouping")
    text += section(
        "Replication of the published groups, published routing",
        pick(rows, grouping="grace", replication="none")
        + pick(rows, grouping="grace", routing="grace"),
        "replication",
    )
    text += section(
        "Routing on the published plan",
        pick(rows, grouping="grace", replication="grace"),
        "routing",
    )
    for most in (1.0, 1.25, published["fullest"]):
        text += section(
            f"No other is better in both, with at most {most:.2f} times the memory",
            front(rows, most),
            *STEPS,
        )
    better = [
        r
        for r in rows
        if r is not published
        and all(r[key] <= published[key] for key in ("node_sends", "imbalance", "fullest"))
    ]
    return text + section(
        "No worse than the published pipeline in node sends, largest load and memory",
        [published, *front(better, published["fullest"])],
        *STEPS,
    )


def ratios(trace: Trace, settings: Settings) -> list[str]:
    """Sizes of the published groups: measured without copies; S and U of the paper."""
    rows = []
    for ratio, node_ratio in RATIOS:
        sizes = replace(
            settings,
            groupings=("grace",),
            replications=("none",),
            ratio=ratio,
            node_ratio=node_ratio,
        )
        found = means(list(run(trace, sizes)))[0]
        free = "free" if node_ratio is None else f"{node_ratio:g}"
        rows.append({"r": f"{ratio:g}", "r of nodes": free, **shown(found)})
    curves = [
        ratio_curve(profile(trace.split(seed)[0]), NODES, seed) for seed in range(settings.seeds)
    ]
    curve = [
        {"r": f"{r:g}", "S(r)": f"{s:.3f}", "U(r)": f"{u:.4f}"}
        for r, s, u in zip(
            CANDIDATES,
            np.mean([c[0] for c in curves], axis=0),
            np.mean([c[1] for c in curves], axis=0),
            strict=True,
        )
    ]
    knees = ", ".join(f"{c[2]:g}" for c in curves)
    return [
        "",
        "## Sizes of the published groups, without copies, seed 0",
        "",
        *table(rows),
        "",
        f"S(r) and U(r), eight groups without nodes; knee of each seed: r = {knees}.",
        "",
        *table(curve),
    ]


def readings(trace: Trace, settings: Settings) -> list[str]:
    """The published pipeline: both readings of its prediction, and other batches."""
    rows = []
    for batch in BATCHES:
        for load_of_copies in (False, True):
            whole = replace(
                settings,
                groupings=("grace",),
                replications=("grace",),
                routings=("grace", "weighted"),
                batch=batch,
                load_of_copies=load_of_copies,
            )
            rows += [
                {
                    "batch": batch,
                    "W_p": "W_r / (n + 1)" if load_of_copies else "W_max / (n + 1), as written",
                    "routing": row["routing"],
                    **shown(row),
                }
                for row in means(list(run(trace, whole)))
            ]
    return [
        "",
        "## The published pipeline: tokens of a batch, readings of W_p, seed 0",
        "",
        *table(rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trace", nargs="*", default=list(TRACES))
    given = parser.parse_args(arguments)
    for name in given.trace:
        of_trace(read_trace(name), given.seeds)


if __name__ == "__main__":
    main()
