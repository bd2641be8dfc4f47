"""Certified gaps of ``replication`` at the size of DBRX: 16 experts, top-4, 4 GPUs, 5 to 16 slots.

    python benchmarks/dbrx_replication.py [--seeds 0 1 2] [--slots 5 6] [--time-limit 300]

Writes ``benchmarks/results/dbrx_replication.csv`` and ``.md``; cases that are not run keep their
lines. A case ends after ``--time-limit`` times ``--threads`` processor seconds, compilation
(or loading it) included: what an idle machine with as many cores does in that time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from result_table import Row, replace_row

from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import anneal_layer, exact_value
from moeopt.heuristics.capacity import spread
from moeopt.heuristics.greedy import contiguous, greedy
from moeopt.prepare import prepare
from moeopt.proofs.pair_search import pair_search

TEXT = (
    "# `replication` at the size of DBRX",
    "",
    "16 experts, top-4, 4 GPUs; written by `benchmarks/dbrx_replication.py`. Gap: (upper − "
    "lower)/upper; excess: the same of E[T] − 1. Contiguous: no replicas. A case may take 600 "
    "processor seconds (300 s on 2 cores).",
)
COLUMNS = (
    "seed", "slots", "contiguous", "greedy", "upper", "lower", "gap", "gap_excess",
    "below_contiguous", "below_greedy", "method", "optimal", "rung", "nodes", "cpu_s",
    "heuristic_cpu_s",
)  # fmt: skip


def solve(seed: int, slots: int, time_limit_s: float, threads: int) -> Row:
    data = prepare(read_instance(f"dbrx_16x4_seed{seed}"), "placement")
    data = replace(data, slots=slots, problem="replication")
    layer = data.scenarios[0]
    begin = time.process_time()
    simple, default, start = greedy(data), contiguous(data), spread(data)
    if simple is None or default is None or start is None:
        raise SystemExit("no plan")
    candidates = [
        anneal_layer(layer, start[0], slots, replicas=True, seed=s, iterations=600_000)
        for s in range(2)
    ]
    hosts, upper = min(candidates, key=lambda found: found[1])
    middle = time.process_time()
    result = pair_search(
        layer,
        data.experts,
        data.gpus,
        slots,
        upper=upper,
        incumbent=hosts,
        time_limit_s=time_limit_s,
        threads=threads,
        clock=lambda: time.process_time() / threads,
        on_bound=lambda bound: print(f"  {time.process_time() - middle:7.1f} s  {bound:.6f}"),
    )
    plain, published = exact_value(layer, default[0]), exact_value(layer, simple[0])
    gap = result.value - result.lower
    gap = gap if gap > 1e-9 * result.value else 0.0  # bounds are rounded down a little
    return {
        "seed": str(seed),
        "slots": str(slots),
        "contiguous": f"{plain:.6f}",
        "greedy": f"{published:.6f}",
        "upper": f"{result.value:.6f}",
        "lower": f"{result.lower:.6f}",
        "gap": f"{gap / result.value:.5f}",
        "gap_excess": f"{gap / (result.value - 1):.4f}" if gap > 0 else "0",
        "below_contiguous": f"{100 * (1 - result.value / plain):.2f} %",
        "below_greedy": f"{100 * (1 - result.value / published):.2f} %",
        "method": result.method,
        "optimal": "yes" if result.complete else "no",
        "rung": f"{result.rung:.4g}",
        "nodes": str(result.nodes),
        "cpu_s": f"{time.process_time() - middle:.1f}",
        "heuristic_cpu_s": f"{middle - begin:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--slots", type=int, nargs="*", default=list(range(5, 17)))
    parser.add_argument("--time-limit", type=float, default=300.0)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for slots in chosen.slots:
            row = solve(seed, slots, chosen.time_limit, chosen.threads)
            print(", ".join(f"{name} {row[name]}" for name in COLUMNS), flush=True)
            replace_row("dbrx_replication", row, key, TEXT)


def key(row: Row) -> tuple[int, int]:
    return int(row["seed"]), int(row["slots"])


if __name__ == "__main__":
    main()
