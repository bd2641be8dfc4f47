"""Tables as one text: LaTeX, Markdown, CSV or HTML. The numbers are the same in all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from moeopt.errors import InputError
from moeopt.report.latex import latex
from moeopt.report.numbers import NOTHING
from moeopt.report.pages import html_tables
from moeopt.report.table import Table


def markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, each with its caption above and its notes below."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    rules = ["---:" if column.is_number else "---" for column in table.columns]
    headings = [column.heading for column in table.columns]
    lines = [
        f"**{table.title}.** {' '.join(table.caption)}",
        "",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in (headings, rules, *table.rows)),
        "",
        *(f"- {_cell(note)}" for note in table.notes),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _cell(text: str) -> str:
    # A bar would end the cell, a star or an underscore between spaces could change the type.
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def csv_text(tables: Sequence[Table]) -> str:
    """Return all tables as one CSV with the columns of all; captions and notes are # lines below.

    Where there is no number the field is empty.
    """
    headings = dict.fromkeys(column.heading for table in tables for column in table.columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["problem", *headings], restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        names = [column.heading for column in table.columns]
        for row in table.rows:
            texts = ("" if cell == NOTHING else cell for cell in row)
            writer.writerow({"problem": table.problem, **dict(zip(names, texts, strict=True))})
    for table in tables:
        for line in (f"{table.title}.", *table.caption, *table.notes):
            text.write(f"# {line}\n".replace("\n", " ").rstrip(" ") + "\n")
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "latex": latex,
    "markdown": markdown,
    "csv": csv_text,
    "html": html_tables,
}


def write_tables(tables: Sequence[Table], file_format: str) -> str:
    """Return tables in a format.

    Raises
    ------
    InputError
        There is no such format.
    """
    if file_format not in FORMATS:
        raise InputError(f"there is no format {file_format!r}; formats are {', '.join(FORMATS)}")
    return FORMATS[file_format](tables)
