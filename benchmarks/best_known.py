"""Solve the shipped instances and keep what is better in ``instances/catalog.json``.

    python benchmarks/best_known.py [--time-limit 60] [NAME ...]

An entry is replaced only side by side: a higher lower bound, a lower upper bound. A lower bound
above a known upper bound (of this or of an earlier run) stops the script: one of them is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import moeopt
from moeopt.catalog import instance_entries
from moeopt.files import write_bytes_atomic
from moeopt.make.files import json_bytes

CATALOG = Path(__file__).resolve().parent.parent / "instances" / "catalog.json"


def merged(known: dict[str, Any] | None, record: Any, date: str) -> dict[str, Any]:
    """Return the better of both sides; sys.exit on a contradiction."""
    entry = known or {"problem": record.problem}
    entry = {
        "problem": record.problem,
        "lower_bound": entry.get("lower_bound"),
        "lower_bound_from": entry.get("lower_bound_from"),
        "upper_bound": entry.get("upper_bound"),
        "upper_bound_from": entry.get("upper_bound_from"),
        "date": entry.get("date", date),
    }
    lower, upper = record.lower_bound, record.upper_bound
    if lower is not None and (entry["lower_bound"] is None or lower > entry["lower_bound"]):
        entry |= {"lower_bound": lower, "lower_bound_from": record.lower_bound_from, "date": date}
    if upper is not None and (entry["upper_bound"] is None or upper < entry["upper_bound"]):
        entry |= {"upper_bound": upper, "upper_bound_from": record.upper_bound_from, "date": date}
    lower, upper = entry["lower_bound"], entry["upper_bound"]
    if lower is not None and upper is not None and lower > upper * (1 + 1e-9):
        sys.exit(f"{record.instance}: lower bound {lower} above upper bound {upper}: {entry}")
    return entry


def main() -> None:
    """Solve and merge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--time-limit", type=float, default=60.0)
    arguments = parser.parse_args()
    date = datetime.date.today().isoformat()
    for shipped in instance_entries():
        if arguments.names and shipped["name"] not in arguments.names:
            continue
        for problem in shipped["problems"]:
            outcome = moeopt.solve(
                shipped["name"], problem=problem, time_limit_s=arguments.time_limit
            )
            record = outcome.record
            print(
                f"{record.instance} {problem}: {record.status} {record.lower_bound} "
                f"{record.upper_bound} gap {record.gap} {record.seconds['total']:.1f} s",
                flush=True,
            )
            catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
            entry = next(e for e in catalog["instances"] if e["name"] == shipped["name"])
            others = [b for b in entry["best_known"] if b["problem"] != problem]
            known = [b for b in entry["best_known"] if b["problem"] == problem]
            best = merged(known[0] if known else None, record, date)
            if record.status != "infeasible":
                entry["best_known"] = [*others, best]
            write_bytes_atomic(CATALOG, json_bytes(catalog), force=True)


if __name__ == "__main__":
    main()
