"""A cache of experts: policies beside the offline optimum, on real traces and adversaries.

Run ``python benchmarks/paging.py``. Traces are the shipped ones, every token, in their order, one
sequence at a time or 8 at once. The offline optimum is proved; policies are misses over it.
Writes benchmarks/results/paging.md, paging.csv and paging_TRACE_batchB.svg.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from moeopt.balance.exact import float_above
from moeopt.make import deepseek_v2_lite, gpt_oss
from moeopt.make.paging import BATCHES, LOAD_GB_S
from moeopt.make.traces_shipped import read_trace
from moeopt.paging import (
    PagingData,
    Requests,
    best_evictions,
    least_misses,
    replay,
    replay_policy,
    requests_of_choices,
)
from moeopt.paging.adversary import (
    adaptive_sequence,
    collecting_rounds,
    cycle_sequence,
    fixed_shares_sequence,
    random_sequence,
)
from moeopt.paging.comparing import CURVES, misses_of
from moeopt.paging.flow import cheapest_loads
from moeopt.paging.partition import equal_partition
from moeopt.paging.policies import OPTIMUM
from moeopt.report.plot_misses import plot_misses
from moeopt.report.plot_style import figure_bytes

RESULTS = Path(__file__).resolve().parent / "results"
#: Bytes of one expert of each trace.
TRACES = {
    "gpt-oss-20b": gpt_oss.EXPERT_BYTES,
    "deepseek-v2-lite": deepseek_v2_lite.EXPERT_BYTES,
}
ONE_SIZE = ("fifo", "random", "marking")
#: Sixteenths of all experts.
SIXTEENTHS = (1, 2, 3, 4, 6, 8, 10, 12, 14)
HEADER = ["trace", "batch", "cache", "percent", "optimum_percent_of_uses"]
HEADER += ["optimum_load_ms_a_token", *CURVES[1:], *ONE_SIZE]
HEADER += ["llru_gain_percent"]

Table = list[list[Any]]


def real(name: str, batch: int) -> tuple[Table, list[Any], float]:
    """Rows by cache size, the gain of LLRU over all sizes, and CPU seconds of all passes."""
    trace = read_trace(name)
    requests = requests_of_choices(trace.ids, trace.offsets, trace.experts, batch=batch)
    every = np.arange(requests.widest, requests.pages + 1)
    begin = time.process_time()
    found = {policy: misses_of(requests, policy, every.tolist()) for policy in CURVES}
    seconds = time.process_time() - begin
    best = found[OPTIMUM]
    assert all((misses[misses >= 0] >= best[misses >= 0]).all() for misses in found.values())
    gain = 100 * (1 - found["llru"] / found["lru"])
    rows = []
    for size in (requests.pages * s // 16 for s in SIXTEENTHS):
        if size < requests.widest:
            continue
        i = size - requests.widest
        alone = {policy: replay_policy(requests, policy, size)[0].sum() for policy in ONE_SIZE}
        ratios = [_ratio(found[policy][i], best[i]) for policy in CURVES[1:]]
        ratios += [_ratio(alone[policy], best[i]) for policy in ONE_SIZE]
        share = round(100 * size / requests.pages, 1)
        miss = round(100 * best[i] / len(requests.page), 3)
        load = load_ms(int(best[i]), TRACES[name], len(trace.ids))
        rows.append([name, batch, size, share, miss, load, *ratios, round(float(gain[i]), 1)])
    figure = plot_misses(every, found, len(requests.page), OPTIMUM, f"{name}, batch {batch}")
    path = RESULTS / f"paging_{name}_batch{batch}.svg"
    path.write_bytes(figure_bytes(figure, "svg"))
    return rows, _gains(requests, name, batch, every, gain), seconds


def load_ms(misses: int, expert_bytes: int, tokens: int) -> str:
    """Time of all loads over the tokens."""
    return f"{misses * expert_bytes / LOAD_GB_S / 1e6 / tokens:.2f}"


def _ratio(misses: int, best: int) -> str:
    return "" if misses < 0 else f"{misses / best:.3f}"


def _gains(requests: Requests, name: str, batch: int, every: Any, gain: Any) -> list[Any]:
    """What LLRU gains over LRU: the most, where, and from a cache on that holds a mean round."""
    a_round = int(np.ceil(len(requests.page) / len(requests) * requests.layers))
    above = every > a_round
    most, later = int(gain.argmax()), int(np.flatnonzero(above)[gain[above].argmax()])
    least = int(gain.argmin())
    return [
        name,
        batch,
        a_round,
        f"{gain[most]:.1f} at {every[most]}",
        f"{gain[later]:.1f} at {every[later]}",
        _span(every, gain >= 15),
        _span(every, gain >= 5),
        f"{gain[least]:.1f} at {every[least]}",
    ]


def _span(every: Any, where: Any) -> str:
    found = every[where]
    return f"{found[0]} to {found[-1]} ({len(found)} sizes)" if len(found) else "nowhere"


def adversaries() -> Table:
    """Measured ratios beside what is proved."""
    rows: Table = []
    for rounds in (100, 1_000, 10_000):
        what = "fixed shares of 8, lru-shares"
        requests = fixed_shares_sequence(8, 16, 8, rounds)
        best = least_misses(requests, 64)
        misses = int(equal_partition(requests).misses[64])
        ratio = f"{misses / best:.2f}"
        rows.append([what, 8, 1, 64, rounds, misses, best, ratio, "", "unbounded"])
    for layers, top_k, cache in ((4, 1, 12), (4, 2, 16), (8, 1, 24)):
        proved = f"{cache - top_k * layers + 1}"
        requests = cycle_sequence(layers, 32, cache, 5_000, top_k=top_k)
        rows.append(_case("LRU on a cycle", "lru", requests, layers, top_k, cache, proved))
        for policy in ("llru", "lfu", "lfu-aging", "fifo"):
            requests = adaptive_sequence(policy, layers, 32, cache, 1_000, top_k=top_k)
            what = f"adaptive, {policy}"
            rows.append(_case(what, policy, requests, layers, top_k, cache, proved))
    for layers, experts in ((1, 8), (4, 8), (24, 8)):
        cache = layers * experts - 1
        proved = f"{(collecting_rounds(layers, experts) - 1) / experts:.2f}"
        requests = random_sequence(layers, experts, 200_000 // layers, seed=0)
        for policy in ("lru", "llru", "marking", "random"):
            what = f"random requests, {policy}"
            rows.append(_case(what, policy, requests, layers, 1, cache, proved))
    return rows


def _case(
    what: str, policy: str, requests: Requests, layers: int, top_k: int, cache: int, proved: str
) -> list[Any]:
    misses = int(replay_policy(requests, policy, cache, seed=0)[0].sum())
    best = least_misses(requests, cache)
    rounds = len(requests) // layers
    return [
        what,
        layers,
        top_k,
        cache,
        rounds,
        misses,
        best,
        *both(requests, misses, best),
        proved,
    ]


def both(requests: Requests, misses: int, best: int) -> list[str]:
    """Misses over the optimum, and the same without first loads: what a longer run tends to."""
    first = int(requests.distinct_by_layer().sum())
    return [f"{misses / best:.2f}", f"{(misses - first) / (best - first):.2f}"]


def seconds() -> Table:
    """CPU seconds of the offline optimum: one size, checked; and as a flow where loads differ."""
    rows: Table = []
    cases = [(1_000_000, 64, 16), (1_000_000, 256, 58)]
    for count, experts, layers in cases:
        rng = np.random.default_rng(0)
        ids = rng.zipf(1.2, (count // layers, layers, 1)) % experts
        requests = requests_of_choices(ids, np.array([0, len(ids)]), experts)
        rows.append(_timed(f"random, {layers} × {experts}, top-1", requests, layers * experts // 4))
    trace = read_trace("gpt-oss-20b")
    requests = requests_of_choices(trace.ids, trace.offsets, trace.experts)
    rows.append(_timed("gpt-oss-20b, every token, top-4", requests, 384))
    few = trace.take(np.arange(4))
    requests = requests_of_choices(few.ids, few.offsets, few.experts)
    cost = np.repeat(np.arange(1, 25), 32)
    begin = time.process_time()
    value, _ = cheapest_loads(requests, 384, cost)
    spent = time.process_time() - begin
    name = "gpt-oss-20b, 4 sequences, layer l costs l + 1: flow"
    rows.append([name, len(requests), len(requests.page), 384, value, f"{spent:.2f}", ""])
    return rows


def _timed(name: str, requests: Requests, cache: int) -> list[Any]:
    begin = time.process_time()
    evictions = best_evictions(requests, cache)
    found = time.process_time()
    played = replay(requests, cache, evictions)
    checked = time.process_time()
    data = PagingData(requests, cache)
    value = float_above(data.cost(played.misses_by_layer(requests)))
    assert len(played.absent) == len(played.full) == 0
    assert value == least_misses(requests, cache)
    spent = [f"{found - begin:.2f}", f"{checked - found:.2f}"]
    return [name, len(requests), len(requests.page), cache, int(value), *spent]


def table(header: list[str], rows: Table) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def write(rows: Table, gains: Table, against: Table, timed: Table, spent: Table) -> None:
    """Write the tables."""
    text = [
        "# Paging",
        "",
        "`python benchmarks/paging.py` makes this. One thread; CPU seconds.",
        "",
        "## Real traces",
        "",
        "Misses over the offline optimum, which is proved; `optimum_percent_of_uses`: its misses;",
        f"`optimum_load_ms_a_token`: time of its loads at {LOAD_GB_S:g} GB/s, over all tokens;",
        "empty: the cache is too small for a share of every layer. Beginning with an empty cache.",
        "`llru_gain_percent`: misses that layer-aware LRU avoids, of those of LRU.",
        "",
        *table(HEADER, rows),
        "",
        "## Layer-aware LRU against LRU",
        "",
        "Over all cache sizes, in percent of LRU's misses. A round is what one token (batch) asks",
        "for in all layers, on average. The paper reports about 15 % on other traces.",
        "",
        *table(
            [
                "trace",
                "batch",
                "experts of a round",
                "most",
                "most, cache above a round",
                "15 % and more",
                "5 % and more",
                "least",
            ],
            gains,
        ),
        "",
        "## Adversaries",
        "",
        "Measured ratios to the offline optimum beside the lower bounds these sequences prove;",
        "without first loads the ratio is what a longer run tends to.",
        "",
        *table(
            [
                "sequence and policy",
                "layers",
                "top_k",
                "cache",
                "rounds",
                "misses",
                "optimum",
                "ratio",
                "after first loads",
                "proved",
            ],
            against,
        ),
        "",
        "## Time",
        "",
        "The offline optimum of one cache size, and its check by replay.",
        "",
        *table(
            ["requests", "number", "uses", "cache", "misses (cost)", "optimum, s", "check, s"],
            timed,
        ),
        "",
        "All cache sizes, all policies of the curves (the optimum, four online, two with shares):",
        "",
        *table(["trace", "batch", "cpu_s"], spent),
        "",
    ]
    (RESULTS / "paging.md").write_text("\n".join(text), encoding="utf-8")
    with (RESULTS / "paging.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Compiled before anything is measured.
    small = cycle_sequence(2, 8, 6, 20)
    for policy in (*CURVES, *ONE_SIZE):
        misses_of(small, policy, [6])
    replay(small, 6, best_evictions(small, 6))
    cheapest_loads(small, 6, np.ones(16, dtype=np.int64))
    rows, gains, spent = [], [], []
    for name in TRACES:
        for batch in BATCHES:
            more, gain, cpu = real(name, batch)
            rows += more
            gains.append(gain)
            spent.append([name, batch, f"{cpu:.0f}"])
            print(*gain, flush=True)
    write(rows, gains, adversaries(), seconds(), spent)


if __name__ == "__main__":
    main()
