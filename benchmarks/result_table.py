"""A result table as CSV and Markdown, written row by row: a run cut short leaves it behind."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, Any]


def replace_row(
    name: str,
    row: Row,
    key: Callable[[Row], tuple[Any, ...]],
    text: Sequence[str],
) -> None:
    """Put a row into the table ``name``; the row of the same key goes, rows stand in key order.

    Parameters
    ----------
    row : dict
        Column to value. A table with other columns is begun anew.
    key : callable
        Of a row as it was written or read: it has to turn text into numbers where order matters.
    text : sequence of str
        Title and lines above the table.
    """
    path = RESULTS / f"{name}.csv"
    columns = list(row)
    rows = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = {key(old): old for old in reader} if reader.fieldnames == columns else {}
    rows[key(row)] = row
    ordered = [rows[k] for k in sorted(rows)]
    RESULTS.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    lines = [
        *text,
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(str(line[column]) for column in columns) + " |" for line in ordered),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
