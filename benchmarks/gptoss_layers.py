"""Column bound on the 24 layers of gpt-oss-20b on 8 GPUs: upper and lower bounds, gaps, seconds.

Run ``python benchmarks/gptoss_layers.py`` for placement (4 slots) and replication (5 and 6 slots).
Upper bounds are plans, evaluated by the package's exact layer times: annealing from the greedy
plan, for placement also the search's own plan. Contiguous and greedy plans stand beside them.
Writes benchmarks/results/gptoss_layers.csv and .md; rows that are not run again are kept.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
from result_table import replace_row

from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import anneal_layer, exact_value
from moeopt.heuristics.greedy import contiguous, greedy
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.proofs.columns import column_bound, verify
from moeopt.proving import one_layer

TEXT = (
    "# gpt-oss-20b, 32 experts on 8 GPUs, every layer",
    "",
    "Expert-time units; gap = (upper − lower)/upper, excess gap = (upper − lower)/(upper − 1).",
    "`closed`: the single-copy relaxation is solved (placement: the plan is optimal).",
    "`below_…`: by how much the plan is better than contiguous, and than greedy.",
    "CPU seconds of one thread. Written by `benchmarks/gptoss_layers.py`.",
)
CASES = [("placement", 4), ("replication", 5), ("replication", 6)]
#: Proposals of the annealing, and CPU seconds of the bound.
ITERATIONS = {"placement": 300_000, "replication": 480_000}
LIMIT_S = {"placement": 30.0, "replication": 10.0}
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
    "below_contiguous_percent",
    "below_greedy_percent",
    "closed",
    "nodes",
    "anneal_cpu_s",
    "bound_cpu_s",
]


def row(data: ProblemData, l: int) -> dict[str, Any]:
    problem, slots = data.problem, data.slots
    assert slots is not None
    case = one_layer(data, l)
    layer, replicas = case.scenarios[0], problem == "replication"
    base, simple = contiguous(case), greedy(case)
    assert base is not None
    assert simple is not None
    begin = time.process_time()
    _, upper = anneal_layer(
        layer, simple[0], slots, replicas=replicas, seed=l, iterations=ITERATIONS[problem]
    )
    middle = time.process_time()
    found = column_bound(
        layer,
        data.experts,
        data.gpus,
        slots,
        replicas=replicas,
        upper=upper,
        stop=lambda: time.process_time() - middle > LIMIT_S[problem],
    )
    end = time.process_time()
    again = verify(found.multipliers, layer, data.experts, data.gpus, slots, replicas=replicas)
    if again != found.root_value:
        raise SystemExit(f"{problem} {slots} slots, layer {l}: the certificate does not verify")
    if not replicas and found.sets:
        hosts = np.zeros_like(base[0])
        for g, members in enumerate(found.sets):
            hosts[members, g] = True
        if hosts.sum() != len(hosts) or hosts.sum(axis=0).max() > slots:
            raise SystemExit(f"{problem} {slots} slots, layer {l}: the search's plan does not fit")
        upper = min(upper, exact_value(layer, hosts))
    if found.value > upper + 1e-9:
        raise SystemExit(f"{problem} {slots} slots, layer {l}: lower {found.value} > upper {upper}")
    above, lowered = up(upper), down(found.value)
    worse = [exact_value(layer, hosts[0]) for hosts in (base, simple)]
    return dict(
        zip(
            HEADER,
            [
                problem,
                slots,
                l,
                *map(up, worse),
                above,
                lowered,
                up(100 * max(0.0, upper - found.value) / upper, 3),
                up(100 * max(0.0, upper - found.value) / (upper - 1.0), 1) if upper > 1.0 else 0.0,
                *(down(100 * (1 - upper / value), 2) for value in worse),
                found.closed,
                found.nodes,
                round(middle - begin, 1),
                round(end - middle, 1),
            ],
            strict=True,
        )
    )


def up(value: float, digits: int = 6) -> float:
    """Rounded up."""
    return math.ceil(value * 10**digits) / 10**digits


def down(value: float, digits: int = 6) -> float:
    """Rounded down."""
    return math.floor(value * 10**digits) / 10**digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, nargs="*", help="default: all")
    parser.add_argument("--problem", choices=sorted(LIMIT_S), help="default: both")
    parser.add_argument("--slots", type=int, help="default: all")
    chosen = parser.parse_args()
    for problem, slots in CASES:
        if chosen.problem not in (None, problem) or chosen.slots not in (None, slots):
            continue
        data = replace(prepare(read_instance("gpt-oss-20b_8gpu"), problem), slots=slots)
        for l in chosen.layers or range(data.layers):
            found = row(data, l)
            print(*found.values(), flush=True)
            replace_row("gptoss_layers", found, key, TEXT)


def key(line: dict[str, Any]) -> tuple[str, int, int]:
    return line["problem"], int(line["slots"]), int(line["layer"])


if __name__ == "__main__":
    main()
