"""A table of a study: headings, texts, a caption and what must be said below it."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: One row: a text for each column.
Row = tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column. Neighbours of one ``group`` share a heading above their own."""

    name: str
    group: str = ""
    is_number: bool = True

    @property
    def heading(self) -> str:
        """Both headings in one line, for formats that have no second one."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True)
class Table:
    """A table whose texts are final: every format writes the same ones.

    Attributes
    ----------
    problem : str
        What it is about.
    caption : tuple of str
        Sentences: formulas, machine, versions, limits.
    notes : tuple of str
        Skipped, failed and missing cells, with reasons.
    """

    problem: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} texts for {len(self.columns)} columns: {row}")

    @property
    def name(self) -> str:
        """The title as a name for labels and anchors."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def heading_groups(self) -> list[tuple[str, int]]:
        """Headings of groups from left to right, with the number of columns below each."""
        groups: list[tuple[str, int]] = []
        for column in self.columns:
            if groups and groups[-1][0] == column.group:
                groups[-1] = (column.group, groups[-1][1] + 1)
            else:
                groups.append((column.group, 1))
        return groups
