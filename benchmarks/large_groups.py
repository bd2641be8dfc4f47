"""Certified gaps of `placement` with many experts on a GPU, layer by layer.

    python benchmarks/large_groups.py                        # both families, all layers
    python benchmarks/large_groups.py --only gpt-oss --layers 0,10 --seconds 60

For each layer: contiguous placement, annealed plan, bounds after some CPU seconds, gap. Seconds are
CPU time of this process with one BLAS thread. Results are written line by line, so that a run that
is cut short leaves its table behind.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import Search, exact_value
from moeopt.heuristics.neighbourhood import improve
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.proofs.psd import psd_bound, verify

FAMILIES = {"gpt-oss": "gpt-oss-20b_4gpu", "deepseek": "deepseek-v2-lite_8gpu"}
RESULTS = Path(__file__).parent / "results"
#: CPU seconds after which the bound is noted, as shares of the whole.
MARKS = (0.25, 0.5, 1.0)
#: First and last temperature of the annealing, as shares of the mean change of a move.
HOT, COLD = 0.08, 0.008


def best_plan(data: ProblemData, layer: int, steps: int) -> tuple[float, float]:
    """Values of the contiguous plan and of one that is cooled slowly, then improved."""
    assert data.slots is not None
    scenarios = data.scenarios[layer]
    hosts = np.arange(data.experts)[:, None] // data.slots == np.arange(data.gpus)
    search = Search(
        [scenarios],
        data.experts,
        data.gpus,
        data.slots,
        np.full(data.gpus, data.slots),
        replicas=False,
        seed=layer,
    )
    search.load(hosts[None])
    scale = search.scale()
    search.cool(steps, HOT * scale, COLD * scale)
    search.descend()
    improve(search)
    return exact_value(scenarios, hosts), exact_value(scenarios, search.hosts()[0])


def bound_of(data: ProblemData, layer: int, upper: float, seconds: float) -> dict[str, float]:
    """Bounds after shares of the CPU time, and the certificate's own value."""
    assert data.slots is not None
    scenarios = data.scenarios[layer]
    begin = time.process_time()
    marks = dict.fromkeys((f"bound_{share * seconds:g}s" for share in MARKS), 1.0)

    def spent() -> float:
        return time.process_time() - begin

    def note(value: float) -> None:
        for share in MARKS:
            if spent() <= share * seconds:
                marks[f"bound_{share * seconds:g}s"] = value

    bound = psd_bound(
        scenarios,
        data.experts,
        data.gpus,
        data.slots,
        upper=upper,
        time_limit_s=1e9,
        stop=lambda: spent() > seconds,
        on_bound=note,
    )
    cpu = spent()
    if bound.certificate is not None:
        again = verify(bound.certificate, scenarios, data.experts, data.gpus, data.slots)
        if again != bound.value:
            raise AssertionError(f"layer {layer}: {bound.value} is verified as {again}")
    return {**marks, "lower": bound.value, "steps": bound.steps, "cpu_s": round(cpu, 1)}


def write_markdown(path: Path) -> None:
    """The CSV file as a table of the same name."""
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(FAMILIES))
    parser.add_argument("--layers", help="numbers from 0, separated by commas; default all")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of each bound")
    parser.add_argument(
        "--anneal-steps", type=int, default=8_000_000, help="proposals, about 25 us each"
    )
    parser.add_argument("--name", default="large_groups", help="of the result file")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.csv"
    # Compiled once, so that no layer pays for it.
    warm = prepare(read_instance("gpt-oss-20b_l10_4gpu"), "placement")
    psd_bound(warm.scenarios[0], 32, 4, 8, steps=1)
    with path.open("w", newline="") as file:
        writer = None
        for family, name in FAMILIES.items():
            if arguments.only not in (None, family):
                continue
            data = prepare(read_instance(name), "placement")
            chosen = range(data.layers)
            if arguments.layers:
                chosen = [int(n) for n in arguments.layers.split(",")]  # type: ignore[assignment]
            for layer in chosen:
                contiguous, upper = best_plan(data, layer, arguments.anneal_steps)
                bounds = bound_of(data, layer, upper, arguments.seconds)
                row = {
                    "instance": name,
                    "layer": layer,
                    "contiguous": contiguous,
                    "upper": upper,
                    **bounds,
                    "gap_percent": 100 * (upper - bounds["lower"]) / upper,
                    "gap_excess_percent": 100 * (upper - bounds["lower"]) / (upper - 1.0),
                }
                shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                if writer is None:
                    writer = csv.DictWriter(file, fieldnames=list(row))
                    writer.writeheader()
                writer.writerow(shown)
                file.flush()
                write_markdown(path)
                print(*shown.values(), flush=True)


if __name__ == "__main__":
    main()
