"""Column bound on the 24 layers of gpt-oss-20b on 8 GPUs: upper and lower bounds, gaps, seconds.

Run ``python benchmarks/gptoss_layers.py`` for placement (4 slots) and replication (5 and 6 slots).
Upper bounds are plans, evaluated by the package's exact layer times: annealing, for placement also
the search's own plan; a contiguous and a greedy placement stand beside them.
Writes benchmarks/results/gptoss_layers.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from moeopt import dispatch
from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import anneal_layer
from moeopt.prepare import prepare
from moeopt.problem import LayerTime, ProblemData, Scenarios
from moeopt.proofs.columns import column_bound, verify

RESULTS = Path(__file__).resolve().parent / "results"
GPUS = 8
CASES = {"placement": (4,), "replication": (5, 6)}
HEADER = [
    "problem",
    "slots",
    "layer",
    "contiguous",
    "greedy",
    "upper",
    "lower",
    "gap_percent",
    "excess_gap_percent",
    "closed",
    "nodes",
    "anneal_cpu_s",
    "bound_cpu_s",
]


def value(layer: Scenarios, hosts: np.ndarray) -> float:
    times, _ = dispatch.layer_times(LayerTime(), layer, hosts)
    return math.fsum((layer.weight * times).tolist())


def contiguous(experts: int) -> np.ndarray:
    hosts = np.zeros((experts, GPUS), dtype=bool)
    hosts[np.arange(experts), np.arange(experts) // -(-experts // GPUS)] = True
    return hosts


def greedy(layer: Scenarios, hosts: np.ndarray, slots: int, replicas: bool) -> np.ndarray:
    """Most used experts first, each to the GPU where it costs least; then replicas likewise."""
    load = np.zeros(len(hosts))
    np.add.at(load, layer.expert, np.repeat(layer.weight, layer.sizes))
    found = np.zeros_like(hosts)
    for e in np.argsort(-load).tolist():
        together = np.zeros(GPUS)
        for s in range(len(layer)):
            members = layer.members(s)
            if e in members:
                together += layer.weight[s] * found[members].sum(axis=0)
        together[found.sum(axis=0) >= -(-len(hosts) // GPUS)] = np.inf
        found[e, together.argmin()] = True
    while replicas and found.sum() < GPUS * slots:
        best: tuple[float, int, int] | None = None
        for e in np.argsort(-load)[:12].tolist():
            for g in np.flatnonzero(found.sum(axis=0) < slots).tolist():
                if not found[e, g]:
                    found[e, g] = True
                    now = value(layer, found)
                    found[e, g] = False
                    best = min(best or (now, e, g), (now, e, g))
        if best is None:
            break
        found[best[1], best[2]] = True
    return found


def row(data: ProblemData, problem: str, slots: int, l: int, limit_s: float) -> dict[str, Any]:
    layer, replicas = data.scenarios[l], problem == "replication"
    base = contiguous(data.experts)
    simple = greedy(layer, base, slots, replicas)
    begin = time.process_time()
    _, upper = anneal_layer(
        layer, simple, slots, replicas=replicas, seed=l, iterations=300_000, time_limit_s=60.0
    )
    middle = time.process_time()
    found = column_bound(
        layer,
        data.experts,
        GPUS,
        slots,
        replicas=replicas,
        upper=upper,
        stop=lambda: time.process_time() - middle > limit_s,
    )
    end = time.process_time()
    again = verify(found.multipliers, layer, data.experts, GPUS, slots, replicas=replicas)
    if again != found.root_value:
        raise SystemExit(f"{problem} {slots} slots, layer {l}: the certificate does not verify")
    if not replicas and found.sets:
        hosts = np.zeros_like(base)
        for g, members in enumerate(found.sets):
            hosts[members, g] = True
        if hosts.sum() != len(hosts) or hosts.sum(axis=0).max() > slots:
            raise SystemExit(f"{problem} {slots} slots, layer {l}: the search's plan does not fit")
        upper = min(upper, value(layer, hosts))
    if found.value > upper + 1e-9:
        raise SystemExit(f"{problem} {slots} slots, layer {l}: lower {found.value} > upper {upper}")
    gap = max(0.0, upper - found.value)
    return dict(
        zip(
            HEADER,
            [
                problem,
                slots,
                l,
                round(value(layer, base), 6),
                round(value(layer, simple), 6),
                math.ceil(upper * 1e6) / 1e6,
                math.floor(found.value * 1e6) / 1e6,
                round(100 * gap / upper, 3),
                round(100 * gap / (upper - 1.0), 1) if upper > 1.0 else 0.0,
                found.closed,
                found.nodes,
                round(middle - begin, 1),
                round(end - middle, 1),
            ],
            strict=True,
        )
    )


def written() -> list[dict[str, Any]]:
    """Rows of the last run."""
    path = RESULTS / "gptoss_layers.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "gptoss_layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "# gpt-oss-20b, 32 experts on 8 GPUs, every layer",
        "",
        "Expert-time units; gap = (upper − lower)/upper, excess gap = (upper − lower)/(upper − 1).",
        "`closed`: the single-copy relaxation is solved (placement: the plan is optimal).",
        "CPU seconds of one thread. Written by `benchmarks/gptoss_layers.py`.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + " --- |" * len(HEADER),
    ]
    lines += ["| " + " | ".join(str(line[key]) for key in HEADER) + " |" for line in rows]
    (RESULTS / "gptoss_layers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, nargs="*", help="default: all")
    parser.add_argument("--problem", choices=CASES, help="default: both")
    parser.add_argument("--limit-s", type=float, default=30.0, help="CPU seconds of each bound")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for problem, all_slots in CASES.items():
        if chosen.problem not in (None, problem):
            continue
        data = prepare(read_instance("gpt-oss-20b_8gpu"), problem)
        for slots in all_slots:
            for l in chosen.layers or range(data.layers):
                rows.append(row(data, problem, slots, l, chosen.limit_s))
                print(*rows[-1].values(), flush=True)
    if chosen.problem is not None:
        rows += [line for line in written() if line["problem"] != chosen.problem]
        rows.sort(key=lambda line: list(CASES).index(line["problem"]))
    write(rows)


if __name__ == "__main__":
    main()
