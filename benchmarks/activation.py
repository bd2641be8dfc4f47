"""Kept experts against gate mass: four ways side by side, each plan checked, each budget bounded.

``python benchmarks/activation.py [--only TEXT] [--time-limit SECONDS]`` takes every shipped
instance of ``activation`` and writes ``results/activation.csv`` and ``.md`` (a row for each number
of experts that all layers may keep: what is reached at that kept mass),
``results/activation_front.csv`` (every point of every front) and ``results/activation_mass.csv``
and ``.md`` (all instances at the same kept mass). One thread, seed 0.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from typing import Any

from result_table import RESULTS, Row, replace_row

from moeopt.activation.data import activation_of
from moeopt.activation_front import Point, four_ways
from moeopt.catalog import instance_entries, read_instance
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.rounding_text import exact_gap, lower_text, percent_text, upper_text

TEXT = (
    "# Activation",
    "",
    "Step times in µs, every plan checked. A row keeps at least the gate mass of `experts` experts",
    "in every layer. `published`: so many in every layer, contiguous placement; `contiguous`: by",
    "layer, contiguous placement (optimal for it); `uniform`: so many in every layer, placed;",
    "`together`: chosen by layer and placed; `at_least`: no plan that keeps so much is faster.",
    "Gains are percents of throughput over today's step (all experts, contiguous); `*_drop_%` over",
    "all experts, placed by the same rule. CPU seconds are of the whole front of an instance.",
    "`python benchmarks/activation.py` makes this; the fronts are in `activation_front.csv`.",
)
FRONT = (
    "instance", "way", "least_kept_mass", "kept_mass", "mean_experts", "step_us", "at_least_us",
)  # fmt: skip


def names(only: str) -> list[str]:
    found = [e["name"] for e in instance_entries() if re.search(r"_activation_b\d+$", e["name"])]
    return sorted((name for name in found if only in name), key=lambda name: key_of(name))


def key_of(name: str) -> tuple[str, int]:
    model, _, batch = name.rpartition("_b")
    return model, int(batch)


def rows_of(data: ProblemData, ways: dict[str, list[Point]], cpu_s: float) -> list[Row]:
    by_share = {p.budget_share: p for p in ways["placed"]}
    fixed = {p.budget_share: p for p in ways["contiguous"]}
    today, placed_full = fixed[1.0].step, by_share[1.0].step
    rows: list[Row] = []
    for j in range(data.top_k, 0, -1):
        published, uniform = ways["uniform_contiguous"][j - 1], ways["uniform_placed"][j - 1]
        together, contiguous = by_share[published.budget_share], fixed[published.budget_share]
        rows.append(
            {
                "instance": data.name,
                "batch": activation_of(data).batch,
                "experts": j,
                "kept_%": f"{100 * published.budget_share:.2f}",
                "published": upper_text(published.step, 6),
                "contiguous": upper_text(contiguous.step, 6),
                "uniform": upper_text(uniform.step, 6),
                "together": upper_text(together.step, 6),
                "at_least": lower_text(together.lower, 6),
                "gap_%": percent_text(exact_gap(together.step, together.lower)),
                "published_gain_%": gain(today, published.step),
                "together_gain_%": gain(today, together.step),
                "contiguous_drop_%": gain(today, contiguous.step),
                "together_drop_%": gain(placed_full, together.step),
                "cpu_s": f"{cpu_s:.0f}",
            }
        )
    return rows


def gain(before: float, after: float) -> str:
    return f"{100 * (before / after - 1):.1f}"


def replace_front(name: str, ways: dict[str, list[Point]]) -> None:
    path = RESULTS / "activation_front.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["instance"] != name]
    for way, points in ways.items():
        rows += [
            {
                "instance": name,
                "way": way,
                "least_kept_mass": f"{p.budget_share:.6f}",
                "kept_mass": f"{p.kept_share:.6f}",
                "mean_experts": f"{p.mean_kept:.4f}",
                "step_us": upper_text(p.step, 7),
                "at_least_us": lower_text(p.lower, 7),
            }
            for p in points
        ]
    rows.sort(
        key=lambda row: (*key_of(row["instance"]), row["way"], -float(row["least_kept_mass"]))
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FRONT, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


MASS_TEXT = (
    "# Activation: the same kept gate mass in every regime",
    "",
    "The points of `activation_front.csv` nearest to 95, 90 and 80 % of the gate mass. Gains are",
    "percents of throughput: `contiguous_%` chosen by layer over all experts, contiguous;",
    "`together_%` over our plan with all experts, placed; `at_most_%` what no plan of that mass",
    "gains over it; `all_%`: placed and chosen by layer over all experts, contiguous.",
    "`python benchmarks/activation.py` makes this.",
)
MASSES = (0.95, 0.9, 0.8)


def write_masses() -> None:
    """Make the table of equal kept mass from the fronts."""
    with (RESULTS / "activation_front.csv").open(newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    for name in dict.fromkeys(p["instance"] for p in points):
        mine = {
            way: {
                float(p["least_kept_mass"]): (number(p["step_us"]), number(p["at_least_us"]))
                for p in points
                if p["instance"] == name and p["way"] == way
            }
            for way in ("placed", "contiguous")
        }
        placed, contiguous = mine["placed"], mine["contiguous"]
        for wanted in MASSES:
            share = min(placed, key=lambda at: abs(at - wanted))
            row: Row = {
                "instance": name,
                "kept_%": f"{100 * share:.2f}",
                "step_us": f"{placed[share][0]:,.1f}",
                "at_least_us": f"{placed[share][1]:,.1f}",
                "contiguous_%": gain(contiguous[1.0][0], contiguous[share][0]),
                "together_%": gain(placed[1.0][0], placed[share][0]),
                "at_most_%": gain(placed[1.0][0], placed[share][1]),
                "all_%": gain(contiguous[1.0][0], placed[share][0]),
            }
            replace_row(
                "activation_mass",
                row,
                lambda row: (*key_of(str(row["instance"])), -float(row["kept_%"])),
                MASS_TEXT,
            )


def number(text: str) -> float:
    return float(text.replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of instances")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds an instance")
    options = parser.parse_args()
    for name in names(options.only):
        data = prepare(read_instance(name), "activation")
        begin = time.process_time()
        ways = four_ways(data, 21, time_limit_s=options.time_limit)
        cpu_s = time.process_time() - begin
        for row in rows_of(data, ways, cpu_s):
            replace_row(
                "activation",
                row,
                lambda row: (*key_of(str(row["instance"])), -int(row["experts"])),
                TEXT,
            )
            print(*row.values(), flush=True)
        replace_front(name, ways)
    write_masses()


if __name__ == "__main__":
    main()
