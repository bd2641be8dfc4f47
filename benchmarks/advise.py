"""Is balancing worth it on real traces? Maps fitted on some requests, scored on others.

Run ``python benchmarks/advise.py`` (``--traces``, ``--gpus`` for fewer). The shipped traces of
expert choices in 16 windows of requests; ``later``: fitted on the first half, scored on the second,
which in ``deepseek-v2-lite`` has other tasks; ``alike``: every other window. Gains are shares of
the tokens on the fullest GPUs that a map saves against one copy of each expert in order, under even
split; the last columns are the balancedness of the map of moeopt under the rules of servers. Writes
benchmarks/results/advise.csv and .md.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
from result_table import Row, replace_row

from moeopt.advise.advice import SCORED, Advice, advise
from moeopt.advise.question import from_trace
from moeopt.balance.hosts import hosts_of
from moeopt.batch_dispatch import RULES, balancedness, dispatch_batch, layer_batch, spread_evenly
from moeopt.make.traces_shipped import ROUTING, read_trace
from moeopt.problem import LayerTime
from moeopt.trace.loads import LoadTrace, loads_of_choices

WINDOWS = 16
#: Slots of every GPU beyond one copy of each expert.
EXTRA = (0, 1, 2)
GPUS_PER_NODE = 8
TEXT = [
    "# Is balancing worth it?",
    "",
    "Shipped traces of expert choices in 16 windows of requests; `python benchmarks/advise.py`",
    "makes this. Maps are fitted on 8 windows and scored on the other 8: `later` on the second",
    "half (of deepseek-v2-lite: other tasks), `alike` on every other window. Gains: tokens on the",
    "fullest GPUs that a map saves, in percent, against one copy of each expert in order, even",
    "split; `most`: no map saves more (proved). `fitted as`: loads that the map of moeopt was made",
    "for, chosen on the fitted windows. Then the balancedness of the map of moeopt under dispatch",
    "rules, 8 GPUs a node. CPU s: everything that `moeopt advise` does.",
]


def ordered(trace: LoadTrace, score: str) -> LoadTrace:
    """Bring the windows to score on to the second half."""
    if score == "later":
        return trace
    turn = [*range(0, WINDOWS, 2), *range(1, WINDOWS, 2)]
    return LoadTrace(trace.name, trace.load[turn], trace.layers)


def under_rules(advice: Advice, trace: LoadTrace, gpus: int) -> dict[str, float]:
    """Mean balancedness of the map over scored windows and layers, by rule; and at best."""
    first, end = advice.scored
    slots = np.full(gpus, advice.plan.shape[1] // gpus)
    hosts = hosts_of(advice.plan, slots, trace.load.shape[2])
    nodes = np.arange(gpus) // GPUS_PER_NODE
    only_tokens = LayerTime("sum", token_us=1.0)
    found: dict[str, list[float]] = {"best": [], **{rule: [] for rule in RULES}}
    for part in np.array_split(trace.load[first:end], min(SCORED, end - first)):
        for l, counts in enumerate(part.sum(axis=0).astype(np.int64)):
            best = dispatch_batch(layer_batch(hosts[l], counts, only_tokens)).time
            found["best"].append(float(counts.sum()) / gpus / best)
            for rule, deal in RULES.items():
                tokens = deal(hosts[l], spread_evenly(counts, gpus), nodes, l)
                found[rule].append(balancedness(tokens))
    return {rule: float(np.mean(values)) for rule, values in found.items()}


def row(trace: LoadTrace, score: str, gpus: int, extra: int) -> Row:
    slots = trace.load.shape[2] + extra * gpus
    begin = time.process_time()
    advice = advise(from_trace(trace, gpus=gpus, slots=slots))
    seconds = time.process_time() - begin
    assert advice.published_gain is not None
    rules = under_rules(advice, trace, gpus)
    return {
        "trace": trace.name,
        "scored on": score,
        "gpus": gpus,
        "slots": slots,
        "today": f"{advice.today.balancedness:.3f}",
        "published %": f"{100 * advice.published_gain:.1f}",
        "moeopt %": f"{100 * advice.gain:.1f}",
        "most %": f"{math.ceil(1000 * advice.most_gain) / 10:.1f}",
        "fitted as": advice.fitted_as,
        "copies to move": advice.moeopt.moves,
        **{rule: f"{value:.3f}" for rule, value in rules.items()},
        "CPU s": f"{seconds:.1f}",
    }


def key(row: Row) -> tuple[Any, ...]:
    return row["trace"], row["scored on"], int(row["gpus"]), int(row["slots"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", nargs="+", choices=list(ROUTING), default=list(ROUTING))
    parser.add_argument("--gpus", nargs="+", type=int, default=[4, 8, 16])
    chosen = parser.parse_args()
    for name in chosen.traces:
        trace = loads_of_choices(read_trace(name), WINDOWS)
        for score in ("later", "alike"):
            for gpus in chosen.gpus:
                for extra in EXTRA:
                    made = row(ordered(trace, score), score, gpus, extra)
                    replace_row("advise", made, key, TEXT)
                    print(*made.values(), flush=True)


if __name__ == "__main__":
    main()
