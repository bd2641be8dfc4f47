"""Certified gaps of `placement` with many experts on a GPU, layer by layer.

    python benchmarks/large_groups.py                        # both families, all layers
    python benchmarks/large_groups.py --only gpt-oss --layers 0,10 --seconds 60

For each layer: contiguous and greedy placement, annealed plan, bounds after some CPU seconds, gap.
Seconds are CPU time of this process with one BLAS thread. Each line is written when it is there and
replaces that of the same layer. Upper bounds and gaps are rounded up, lower bounds down.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import time
from fractions import Fraction

import numpy as np
from result_table import replace_row

from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import exact_value
from moeopt.heuristics.anneal_search import Search
from moeopt.heuristics.greedy import greedy
from moeopt.heuristics.neighbourhood import improve
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.proofs.psd import psd_bound, verify
from moeopt.proving import one_layer
from moeopt.rounding_text import exact_gap, lower_text, percent_text, upper_text

FAMILIES = {"gpt-oss": "gpt-oss-20b_4gpu", "deepseek": "deepseek-v2-lite_8gpu"}
TEXT = (
    "# `placement` with many experts on a GPU",
    "",
    "gpt-oss-20b: 32 experts, top-4, 4 GPUs; DeepSeek-V2-Lite: 64 experts, top-6, 8 GPUs. "
    "Written by `benchmarks/large_groups.py`. Gap: (upper − lower)/upper; excess gap: the same "
    "of upper − 1. CPU seconds of one thread.",
)
COLUMNS = (
    "instance", "layer", "contiguous", "greedy", "upper", "lower_at_half", "lower", "gap_percent",
    "excess_gap_percent", "below_contiguous_percent", "below_greedy_percent", "anneal_cpu_s",
    "bound_cpu_s",
)  # fmt: skip
#: First and last temperature of the annealing, as shares of the mean change of a move.
HOT, COLD = 0.08, 0.008


def best_plan(layer: ProblemData, start: np.ndarray, seed: int, steps: int) -> float:
    """Value of a plan that is cooled slowly, then improved; never worse than the start."""
    assert layer.slots is not None
    search = Search(
        [layer.scenarios[0]],
        layer.experts,
        layer.gpus,
        layer.slots,
        np.full(layer.gpus, layer.slots),
        replicas=False,
        seed=seed,
    )
    search.load(start[None])
    scale = search.scale()
    search.cool(steps, HOT * scale, COLD * scale)
    search.descend()
    improve(search)
    values = [exact_value(layer.scenarios[0], hosts) for hosts in (start, search.hosts()[0])]
    return min(values)


def bounds_of(layer: ProblemData, upper: float, seconds: float) -> tuple[float, float]:
    """Bounds after half of the CPU time and at its end; the certificate is evaluated again."""
    assert layer.slots is not None
    begin = time.process_time()
    half = 1.0

    def note(value: float) -> None:
        nonlocal half
        if time.process_time() - begin <= seconds / 2:
            half = value

    shape = layer.experts, layer.gpus, layer.slots
    bound = psd_bound(
        layer.scenarios[0],
        *shape,
        upper=upper,
        time_limit_s=1e9,
        stop=lambda: time.process_time() - begin > seconds,
        on_bound=note,
    )
    if bound.certificate is not None:
        again = verify(bound.certificate, layer.scenarios[0], *shape)
        if again != bound.value:
            raise SystemExit(f"layer {layer.layer_numbers}: {bound.value} is verified as {again}")
    return half, bound.value


def row(data: ProblemData, l: int, steps: int, seconds: float) -> dict[str, str]:
    layer = one_layer(data, l)
    assert layer.slots is not None
    contiguous = np.arange(data.experts)[:, None] // layer.slots == np.arange(data.gpus)
    published = greedy(layer)
    if published is None:
        raise SystemExit(f"{data.name}, layer {l}: the greedy found no room")
    simple = [exact_value(layer.scenarios[0], hosts) for hosts in (contiguous, published[0])]
    clocks = [time.process_time()]
    upper = best_plan(layer, published[0], l, steps)
    clocks.append(time.process_time())
    half, lower = bounds_of(layer, upper, seconds)
    clocks.append(time.process_time())
    if lower > upper:
        raise SystemExit(f"{data.name}, layer {l}: lower {lower!r} > upper {upper!r}")
    gap = exact_gap(upper, lower)
    texts = [
        data.name,
        str(data.layer_numbers[l]),
        *(upper_text(value, 7) for value in (*simple, upper)),
        *(lower_text(value, 7) for value in (half, lower)),
        percent_text(gap),
        percent_text(gap * Fraction(upper) / Fraction(upper - 1.0)),
        *(f"{100 * (1 - upper / value):.2f}" for value in simple),
        *(f"{after - before:.0f}" for before, after in itertools.pairwise(clocks)),
    ]
    return dict(zip(COLUMNS, texts, strict=True))


def key(line: dict[str, str]) -> tuple[int, int]:
    return list(FAMILIES.values()).index(line["instance"]), int(line["layer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=sorted(FAMILIES))
    parser.add_argument("--layers", help="numbers from 0, separated by commas; default all")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of each bound")
    parser.add_argument("--anneal-steps", type=int, default=8_000_000, help="about 25 us each")
    arguments = parser.parse_args()
    # Compiled once, so that no layer pays for it.
    warm = prepare(read_instance("gpt-oss-20b_l10_4gpu"), "placement")
    psd_bound(warm.scenarios[0], 32, 4, 8, steps=1)
    for family, name in FAMILIES.items():
        if arguments.only not in (None, family):
            continue
        data = prepare(read_instance(name), "placement")
        chosen = list(range(data.layers))
        if arguments.layers:
            chosen = [int(number) for number in arguments.layers.split(",")]
        for l in chosen:
            line = row(data, l, arguments.anneal_steps, arguments.seconds)
            replace_row("large_groups", line, key, TEXT)
            print(*line.values(), flush=True)


if __name__ == "__main__":
    main()
