"""Largest throughput under limits of the time per output token, fronts, and what memory is worth.

``python benchmarks/front.py [--only TEXT]`` takes every steady instance and writes
``results/front.csv`` (one row a limit), ``results/front_summary.csv`` (one row an instance) and
``results/front.md`` (both). CPU seconds are of this process, one thread, kernels compiled before.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

from moeopt import read_instance
from moeopt.front.curve import front
from moeopt.front.envelope import Envelope
from moeopt.front.plans import Planner
from moeopt.front.sensitivity import Case, sensitivity
from moeopt.front.steady import steady_state
from moeopt.front.throughput import Limited, largest_throughput
from moeopt.rounding_text import lower_text, upper_text

RESULTS = Path(__file__).parent / "results"
NAMES = (
    "mixtral-8x7b_4gpu_steady", "mixtral-8x7b_8gpu_steady", "gpt-oss-20b_4gpu_steady",
    "gpt-oss-20b_8gpu_steady", "deepseek-v2-lite_8gpu_steady", "deepseek-v3_32gpu_steady",
)  # fmt: skip
FORMS = ("_sum", "", "_p2")
LIMITS_MS = (15.0, 20.0, 30.0, 40.0, 60.0, math.inf)

ROW = ("instance", "tpot_ms", "at_most", "tokens_s", "gap_percent", "in_flight", "step_ms",
       "replicas", "kv_share", "cpu_s")  # fmt: skip
SUMMARY = ("instance", "points", "largest_gap_percent", "bounds", "plans", "front_cpu_s",
           "gib_for_replicas", "gib_for_kv", "gib_best", "replicas_pay_to", "sensitivity_cpu_s",
           )  # fmt: skip


def points_of(name: str) -> int:
    """Points of a front: fewer where a plan takes ten seconds."""
    return 6 if "v3" in name else 12


def limited_row(name: str, point: Limited, cpu_s: float) -> dict[str, object]:
    """One limit."""
    plan = point.plan
    row = dict.fromkeys(ROW, "") | {"instance": name, "cpu_s": f"{cpu_s:.2f}"}
    row["tpot_ms"] = "none" if point.limit_us == math.inf else f"{point.limit_us / 1e3:g}"
    row["at_most"] = upper_text(point.bound, 6) if point.bound else "no plan exists"
    if plan is not None and point.gap is not None:
        row |= {
            "tokens_s": lower_text(plan.throughput, 6),
            "gap_percent": f"{100 * point.gap:.4f}",
            "in_flight": str(plan.requests),
            "step_ms": upper_text(plan.step_us / 1e3, 6),
            "replicas": str(plan.replicas),
            "kv_share": f"{plan.kv_share:.3f}",
        }
    return dict(row)


def change_text(case: Case | None, now: Case) -> str:
    """An interval of tokens a second."""
    change = None if case is None else case.change_from(now)
    if change is None:
        return "does not fit"
    return f"{lower_text(change[0], 4)} to {upper_text(change[1], 4)}"


def run(name: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    """All numbers of one instance."""
    instance = read_instance(name)
    steady = steady_state(instance)
    Planner(steady).plan(1)  # compiles
    envelope, planner = Envelope(steady), Planner(steady)
    rows = []
    for limit_ms in LIMITS_MS:
        begin = time.process_time()
        point = largest_throughput(envelope, planner, limit_ms * 1e3)
        rows.append(limited_row(name, point, time.process_time() - begin))
        print(rows[-1], flush=True)
    begin = time.process_time()
    envelope, planner = Envelope(steady), Planner(steady)
    points = front(envelope, planner, points=points_of(name))
    front_cpu_s = time.process_time() - begin
    begin = time.process_time()
    answer = sensitivity(instance)
    case_of = {case.name: case for case in answer.cases}
    now = answer.cases[0]
    summary = {
        "instance": name,
        "points": len(points),
        "largest_gap_percent": f"{max(100 * (p.gap or 0.0) for p in points if p.plan):.4f}",
        "bounds": envelope.computed,
        "plans": len(planner.made),
        "front_cpu_s": f"{front_cpu_s:.1f}",
        "gib_for_replicas": change_text(case_of.get("+ replicas"), now),
        "gib_for_kv": change_text(case_of.get("+ KV"), now),
        "gib_best": change_text(case_of.get("+ best use"), now),
        "replicas_pay_to": "" if answer.pays is None else answer.pays.proved + 1,
        "sensitivity_cpu_s": f"{time.process_time() - begin:.1f}",
    }
    print(summary, flush=True)
    return rows, summary


def update(
    file: str, columns: tuple[str, ...], new: list[dict[str, object]], names: list[str]
) -> list[dict[str, object]]:
    """Replace an instance's rows in a table; return all, in the order of the instances."""
    path = RESULTS / file
    known: list[dict[str, object]] = []
    if path.exists():
        with path.open(encoding="utf-8") as stream:
            known = [dict(row) for row in csv.DictReader(stream)]
    fresh = {row["instance"] for row in new}
    rows = [row for row in known if row["instance"] not in fresh] + new
    rows.sort(key=lambda row: names.index(str(row["instance"])))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def table(columns: tuple[str, ...], rows: list[dict[str, object]]) -> list[str]:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows]


def main() -> None:
    """Run the instances asked for; keep the others' rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="instances whose name has this text")
    arguments = parser.parse_args()
    names = [name + form for name in NAMES for form in FORMS]
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        if arguments.only not in name:
            continue
        limits, summary = run(name)
        rows = update("front.csv", ROW, limits, names)
        summaries = update("front_summary.csv", SUMMARY, [summary], names)
        text = [
            "# Throughput under latency limits",
            "",
            "Made by `benchmarks/front.py`. Decoding only. `at_most` is proved, `tokens_s` is a "
            "checked plan's.",
            "",
            *table(ROW, rows),
            "",
            "Fronts, limits chosen; change of the tokens a second by one GiB "
            "a GPU at the point of most throughput (for replicas, for KV cache, best use); "
            "replicas that are proved to pay there.",
            "",
            *table(SUMMARY, summaries),
        ]
        (RESULTS / "front.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
