"""Replay of held-out requests: error of the predictions, gain over each baseline.

    python benchmarks/replay.py [--time-limit 20] [--splits 3] [--only gpt-oss-20b_4] [--steps 600]

For each case and each of several splits of the trace by request, an instance is made from the
fitted half (`moeopt instance make --gpu l40s …`), planned under mean routing (`moeopt front`) and,
where the batch is given, under sampled routing (`moeopt instance sample`, problem replication), and
replayed on the other half. Intervals are over splits: another plan, another half, another order of
requests. Writes ``benchmarks/results/replay.csv`` and ``.md``. Prefill and communication are in no
number.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moeopt
from moeopt.calibrate.instances import Wanted, make_instance
from moeopt.front.envelope import Envelope
from moeopt.front.plans import Planner
from moeopt.front.steady import steady_state
from moeopt.front.throughput import largest_throughput
from moeopt.instance import Instance
from moeopt.make.traces_shipped import read_arrivals, read_trace
from moeopt.simulate.baselines import BASELINES
from moeopt.simulate.gains import Interval, interval
from moeopt.simulate.sampled_instance import sampled_instance
from moeopt.simulate.simulating import Settings, simulate
from moeopt.solution import Solution

RESULTS = Path(__file__).parent / "results"
ARRIVALS = "azure-conv"


#: Instance, plan, and what it took.
Planned = tuple[Instance, Solution, dict[str, float]]


@dataclass(frozen=True)
class Case:
    """An MoE on so many GPUs, replayed with at most ``batch`` requests at once (None: KV limit)."""

    moe: str
    gpus: int
    batch: int | None
    memory_mib: float = 24_564.0

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.moe}_{self.gpus}_{self.batch or 'kv'}"


CASES = [
    Case(moe, gpus, batch)
    for moe, gpus in (("gpt-oss-20b", 4), ("gpt-oss-20b", 8), ("deepseek-v2-lite", 8))
    for batch in (16, 64, None)
]


def made(case: Case, split: int) -> Instance:
    """Make the instance of a split."""
    return make_instance(
        Wanted("l40s", case.moe, case.gpus, form="p2", memory_mib=case.memory_mib, seed=split)
    ).instance


def planned(case: Case, instance: Instance, split: int, time_limit_s: float) -> Planned:
    """Plan the batch, or the batch of most throughput, under mean routing (`moeopt front`)."""
    begin = time.process_time()
    steady = steady_state(instance)
    envelope = Envelope(steady)
    planner = Planner(steady, seed=split, deadline=time.monotonic() + time_limit_s)
    if case.batch is None:
        best = largest_throughput(envelope, planner)
        plan, gap = best.plan, best.gap
    else:
        plan = planner.plan(case.batch)
        bound = envelope.range(case.batch, case.batch).throughput
        gap = None if plan is None else 1.0 - plan.throughput / bound
    assert plan is not None
    assert gap is not None
    spent = {"plan_cpu_s": time.process_time() - begin, "gap": max(gap, 0.0)}
    return plan.instance, plan.solution, spent


def planned_for_batch(case: Case, instance: Instance, split: int, time_limit_s: float) -> Planned:
    """Plan sampled decode steps of the batch, from the fitted half."""
    assert case.batch is not None
    fitted = read_trace(case.moe).split(split)[0]
    sampled = sampled_instance(instance, fitted, batch=case.batch, seed=split)
    begin = time.process_time()
    outcome = moeopt.solve(
        sampled, problem="replication", time_limit_s=time_limit_s, threads=1, seed=split
    )
    assert outcome.solution is not None
    spent = {"plan_cpu_s": time.process_time() - begin, "gap": outcome.record.gap or 0.0}
    return sampled, outcome.solution, spent


def run(cases: list[Case], splits: int, steps: int, time_limit_s: float) -> list[dict[str, Any]]:
    """One row for each case and split."""
    arrivals = read_arrivals(ARRIVALS)
    rows = []
    for case in cases:
        trace = read_trace(case.moe)
        for split in range(splits):
            instance = made(case, split)
            plans = {"mean": planned(case, instance, split, time_limit_s)}
            if case.batch is not None:
                plans["sampled"] = planned_for_batch(case, instance, split, time_limit_s)
            for plan, (served, solution, spent) in plans.items():
                begin = time.process_time()
                settings = Settings(
                    split_seed=split, seeds=1, steps=steps, batch_limit=case.batch, rule="level"
                )
                report = simulate(served, solution, trace, arrivals, settings=settings)
                row = {"plan": plan} | _row(case, split, report) | spent
                row["replay_cpu_s"] = time.process_time() - begin
                rows.append(row)
                shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
                print(*shown, flush=True)
    return rows


def _row(case: Case, split: int, report: dict[str, Any]) -> dict[str, Any]:
    plan, predicted = report["plan"], report["prediction"]
    row: dict[str, Any] = {
        "case": case.name,
        "split": split,
        "batch": plan["batch"]["mean"],
        "replicas": plan["replicas"],
        "step_us": plan["step_us"]["mean"],
        "tokens_per_s": plan["tokens_per_s"]["mean"],
        "tpot_p99_us": plan["tpot_us"]["p99"],
        "gpu_imbalance": plan["gpu_imbalance"],
        "mean_error": predicted["mean"]["error"]["mean"],
        "sampled_error": predicted["sampled"]["error"]["mean"],
        "mean_layers_error": predicted["mean"]["layers_error"]["mean"],
        "sampled_layers_error": predicted["sampled"]["layers_error"]["mean"],
    }
    for name, figures in report["baselines"].items():
        row[f"gain_{name}"] = figures["gain"]["mean"] if "gain" in figures else None
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: means over splits with 95 % intervals."""
    names = list(dict.fromkeys((row["case"], row["plan"]) for row in rows))
    columns = [
        ("mean routing", "mean_error"),
        ("sampled", "sampled_error"),
        ("mean, layers", "mean_layers_error"),
        ("sampled, layers", "sampled_layers_error"),
        *((f"over {name}", f"gain_{name}") for name in BASELINES),
    ]
    lines = [
        "| case | plan | gap | batch | replicas | step, ms | tokens/s | "
        f"{' | '.join(c for c, _ in columns)} |",
        "| --- | --- |" + " ---: |" * (5 + len(columns)),
    ]
    for name, plan in names:
        these = [row for row in rows if (row["case"], row["plan"]) == (name, plan)]

        def over(key: str, these: list[dict[str, Any]] = these) -> Interval | None:
            values = [row[key] for row in these]
            return None if None in values else interval(values)

        cells = [
            f"{max(r['gap'] for r in these):.2%}",
            f"{interval([r['batch'] for r in these]).mean:,.0f}",
            f"{interval([r['replicas'] for r in these]).mean:,.0f}",
            f"{interval([r['step_us'] for r in these]).mean / 1e3:.2f}",
            f"{interval([r['tokens_per_s'] for r in these]).mean:,.0f}",
            *(_text(over(key)) for _, key in columns),
        ]
        lines.append(f"| {name} | {plan} | " + " | ".join(cells) + " |")
    return lines


def _text(found: Interval | None) -> str:
    if found is None:
        return "does not fit"
    text = f"{found.mean:+.1%}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ± {(found.high - found.low) / 2:.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=20.0)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.only in case.name]
    rows = run(cases, options.splits, options.steps, options.time_limit)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "replay.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    readings = ("mean", "sampled")
    largest = {reading: max(abs(row[f"{reading}_error"]) for row in rows) for reading in readings}
    spent = sum(row["replay_cpu_s"] for row in rows)
    text = [
        "# Replay of held-out requests",
        "",
        f"`python benchmarks/replay.py --splits {options.splits} --steps {options.steps} "
        f"--time-limit {options.time_limit:g}`: L40S bandwidth and arithmetic, 24,564 MiB a GPU "
        f"(3,712 reserved), layer time `p2`, lengths of {ARRIVALS}; a case is MoE, GPUs and the "
        "most requests at once (kv: what the memory holds). Requests of the trace are split in "
        "halves, one fits plan, baselines and predictions, the other is replayed; ± is the 95 % "
        "interval over splits. Error of the predicted mean step, of the whole step and of its MoE "
        "layers; gain in tokens a second. Baselines with replicas have one slot more a GPU and "
        "layer. Every plan is served by the rule `level`. Plans: `mean` (one wave of the batch, or "
        "of the most throughput, as `moeopt front`) and, where the batch is given, `sampled` "
        "(replication on 256 sampled steps of the fitted half); gap: the largest of its own "
        "objective. Prefill and communication are in no number.",
        "",
        *table(rows),
        "",
        f"Largest error of a step in any replay: {largest['mean']:.1%} under mean routing, "
        f"{largest['sampled']:.1%} sampled. Replays and predictions took {spent:.0f} CPU seconds.",
        "",
    ]
    (RESULTS / "replay.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
