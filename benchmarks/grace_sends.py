"""Copies of tokens sent between nodes: groupings with equal nodes beside a proved bound.

Run ``python benchmarks/grace_sends.py``. Shipped traces, 2 nodes of 4 GPUs, no copies. Groupings
are fitted on half of the requests; sends are those of the other half, exact means over homes. The
best grouping found for the other half itself, and the bound of all, stand beside. Writes
benchmarks/results/grace_sends.csv and .md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
from result_table import Row, replace_row

from moeopt.grace import Nodes, Profile, group, profile
from moeopt.grace.connectivity import Effort, anneal_layer, expected_cost
from moeopt.grace.least_sends import least_mean_sends
from moeopt.make.traces_shipped import read_trace
from moeopt.rounding_text import lower_text

TRACES = ("gpt-oss-20b", "deepseek-v2-lite")
GROUPINGS = ("contiguous", "random", "balance", "grace-uniform", "affinity-balanced", "affinity")
NODES, HALVES = Nodes(2, 4), Nodes(2, 1)
TEXT = (
    "# Sends between two nodes without copies",
    "",
    "`python benchmarks/grace_sends.py` makes this. Copies sent to the other node for each",
    "held-out token and layer, means over homes and layers; 2 nodes with equally many experts.",
    "`hindsight`: the best division found for these very tokens; `least`: no division sends fewer",
    "(proved); gap: (hindsight − least) / hindsight. CPU seconds of the bound, all layers.",
)


def sends(measured: Profile, gpu: np.ndarray) -> float:
    """Mean over layers of the mean node sends of a token."""
    node = NODES.node_of[gpu]
    return float(
        np.mean(
            [
                expected_cost(measured.sets[l], measured.weight[l], node[l], HALVES, 1.0)
                / measured.weight[l].sum()
                for l in range(measured.layers)
            ]
        )
    )


def hindsight(measured: Profile, starts: Sequence[np.ndarray], seed: int) -> float:
    """Best division of each layer among the nodes, made for the measured tokens."""
    total = 0.0
    for l in range(measured.layers):
        found = [
            anneal_layer(measured, l, NODES.node_of[start[l]], HALVES, math.inf, Effort(), seed)
            for start in starts
        ]
        total += min(
            expected_cost(measured.sets[l], measured.weight[l], node, HALVES, 1.0) for node in found
        ) / float(measured.weight[l].sum())
    return total / measured.layers


def row_of(name: str, seed: int) -> Row:
    fitted, held = (profile(part) for part in read_trace(name).split(seed))
    groups = {grouping: group(grouping, fitted, NODES, seed) for grouping in GROUPINGS}
    best = hindsight(held, [groups["affinity"], groups["contiguous"]], seed)
    begin = time.process_time()
    least = float(least_mean_sends(held, HALVES).mean())
    seconds = time.process_time() - begin
    return {
        "trace": name,
        "seed": seed,
        **{grouping: f"{sends(held, gpu):.4f}" for grouping, gpu in groups.items()},
        "hindsight": f"{best:.4f}",
        "least": lower_text(least, 4),
        "gap_percent": f"{100 * (best - least) / best:.2f}",
        "bound_cpu_s": f"{seconds:.1f}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    for name in TRACES:
        for seed in range(given.seeds):
            row = row_of(name, seed)
            print(*row.values(), flush=True)
            replace_row(
                "grace_sends", row, lambda r: (TRACES.index(r["trace"]), int(r["seed"])), TEXT
            )


if __name__ == "__main__":
    main()
