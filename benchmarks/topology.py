"""Hops of the tokens on cluster graphs: baselines, flow with and without loads, copies and bounds.

Run ``python benchmarks/topology.py`` (``--only TEXT`` for some instances). Hops are those of one
token through all layers, under the loads of the instance; values are the checker's, rounded up,
bounds are certified, rounded down. ``random`` is the median of five seeds; ``unweighted`` the best
plan for experts that are all alike, evaluated under the loads; of the many that are best the one
the flow finds first. Writes
benchmarks/results/topology, topology_room and topology_replicas, .csv and .md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
from result_table import replace_row

from moeopt import __version__
from moeopt.catalog import instance_entries, read_instance
from moeopt.prepare import prepare
from moeopt.rounding_text import exact_gap, lower_text, percent_text, upper_text
from moeopt.topology.baselines import BASELINES
from moeopt.topology.copies import add_greedily
from moeopt.topology.data import TopologyData
from moeopt.topology.exact import value_above
from moeopt.topology.flow import best_flow
from moeopt.topology.prices import price_bound
from moeopt.topology.search import anneal

SEEDS = range(5)
ORDER = ("deepseek-v2-lite", "deepseek-moe-16b", "deepseek-r1")

MADE = f"`python benchmarks/topology.py` makes this (moeopt {__version__}, one thread)."
ONE_TEXT = [
    "# Topology: one copy of each expert",
    "",
    MADE,
    "Expected hops of one token through all layers under the loads; in brackets the change against",
    "round robin, in percent. `weighted` is proved optimal: `bound` is its certificate, `gap`",
    "relative.",
]
COPIES_TEXT = [
    "# Topology: copies, tokens from every server",
    "",
    MADE,
    "Expected hops of one token through all layers; `one copy` is proved optimal for one copy of",
    "each expert; `greedy` adds copies to it, `search` anneals from there (seed 0). Gaps are",
    "certified, in percent.",
]
ROOM_TEXT = [
    "# Topology: what scarce room leaves to win",
    "",
    MADE,
    "Change of the expected hops against round robin, in percent, with one copy of each expert:",
    "`unweighted / weighted` objective, both proved optimal for their own objective and evaluated",
    "under the loads. A server holds at most so many times its even share of the experts of a",
    "layer, and of all layers.",
]
#: Room of a server, as a multiple of its even share.
ROOMS = (1.0, 1.25, 1.5, 2.0, 4.0)


def hops(data: TopologyData, plan: np.ndarray) -> float:
    return value_above(data, plan)


def one_copy(name: str, data: TopologyData) -> dict[str, Any]:
    base = hops(data, BASELINES["round robin"](data, 0))

    def cell(value: float) -> str:
        return f"{upper_text(value, 7)} ({100 * (value / base - 1):+.1f})"

    begin = time.process_time()
    flow = best_flow(data)
    seconds = time.process_time() - begin
    alike = best_flow(replace(data, weight=np.ones_like(data.weight)))
    assert flow is not None
    assert alike is not None
    random = np.median([hops(data, BASELINES["random"](data, seed)) for seed in SEEDS])
    best = hops(data, flow.plan)
    return {
        "instance": name,
        "round robin": upper_text(base, 7),
        "contiguous": cell(hops(data, BASELINES["contiguous"](data, 0))),
        "random": cell(float(random)),
        "greedy": cell(hops(data, BASELINES["greedy"](data, 0))),
        "unweighted": cell(hops(data, alike.plan)),
        "weighted": cell(best),
        "bound": lower_text(flow.value, 7),
        "gap": f"{float(exact_gap(best, flow.value)):.0e}",
        "flow and proof, CPU s": f"{seconds:.2f}",
    }


def room(name: str, data: TopologyData) -> dict[str, Any]:
    row = {"instance": name}
    for times in ROOMS:
        a_layer = -int(-times * data.experts // data.servers)
        roomy = replace(
            data,
            capacity=np.full(data.servers, -int(-times * data.weight.size // data.servers)),
            capacity_per_layer=np.full(data.servers, a_layer),
        )
        base = hops(roomy, BASELINES["round robin"](roomy, 0))
        found = [
            best_flow(replace(roomy, weight=w)) for w in (np.ones_like(data.weight), data.weight)
        ]
        changes = [100 * (hops(roomy, f.plan) / base - 1) for f in found if f is not None]
        row[f"×{times:g}"] = " / ".join(f"{change:+.1f}" for change in changes)
    return row


def copies(name: str, data: TopologyData) -> dict[str, Any]:
    flow = best_flow(replace(data, replicas=0))
    assert flow is not None
    one = hops(data, flow.plan)
    begin = time.process_time()
    bound = price_bound(data)
    bounded = time.process_time() - begin
    greedy = add_greedily(data, flow.plan)
    begin = time.process_time()
    plan = anneal(data, greedy)
    searched = time.process_time() - begin
    assert bound is not None
    first, best = hops(data, greedy), hops(data, plan)
    return {
        "instance": name,
        "round robin": upper_text(hops(data, BASELINES["round robin"](data, 0)), 7),
        "one copy": upper_text(one, 7),
        "copies more": int(plan.sum()) - data.layers * data.experts,
        "greedy": upper_text(first, 7),
        "search": f"{upper_text(best, 7)} ({100 * (best / one - 1):+.1f})",
        "bound": lower_text(bound, 7),
        "gap of greedy": percent_text(exact_gap(first, bound)),
        "gap of search": percent_text(exact_gap(best, bound)),
        "bound, CPU s": f"{bounded:.1f}",
        "search, CPU s": f"{searched:.1f}",
    }


def place(row: dict[str, Any]) -> tuple[int, str]:
    model = row["instance"].partition("_topology_")[0]
    return ORDER.index(model), row["instance"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    names = [
        entry["name"]
        for entry in instance_entries()
        if "_topology_" in entry["name"]
        and not entry["name"].startswith("smoke")
        and only in entry["name"]
    ]
    warm = prepare(read_instance("smoke_topology_replicas"), "topology").topology
    assert warm is not None
    copies("compiles", warm)  # before anything is measured
    for name in names:
        data = prepare(read_instance(name), "topology").topology
        assert data is not None
        many = data.replicas > 0
        row = copies(name, data) if many else one_copy(name, data)
        table, text = ("topology_replicas", COPIES_TEXT) if many else ("topology", ONE_TEXT)
        replace_row(table, row, place, text)
        print(*row.values(), flush=True)
        if not many:
            replace_row("topology_room", room(name, data), place, ROOM_TEXT)


if __name__ == "__main__":
    main()
