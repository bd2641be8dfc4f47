"""A user's measurements: a CSV of token-expert pairs, activated experts and microseconds."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeopt.errors import InputError
from moeopt.files import read_text
from moeopt.problem import FloatArray

COLUMNS = ("tokens", "activated_experts", "microseconds")
#: A fit of four coefficients to fewer rows says nothing.
LEAST_ROWS = 6
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Measurements:
    """Calls of one GPU's expert kernel, all arrays of shape (n,).

    Attributes
    ----------
    activated : float array
        A: experts with tokens.
    tokens : float array
        N: token-expert pairs computed (tokens times top-k where one GPU has all experts).
    time_us : float array
    """

    activated: FloatArray
    tokens: FloatArray
    time_us: FloatArray

    def __len__(self) -> int:
        return len(self.time_us)


def read_measurements(path: str | os.PathLike[str]) -> Measurements:
    """Read a CSV with the columns :data:`COLUMNS`, in any order; lines with ``#`` are comments.

    Raises
    ------
    InputError
        One line for each problem, with its line number.
    """
    path = Path(path)
    text = read_text(path)
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    rows = list(csv.reader(line for _, line in lines))
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(
            f"{path}: lacks the columns {', '.join(missing)} (needs {','.join(COLUMNS)})"
        )
    at = [header.index(name) for name in COLUMNS]
    values: list[list[float]] = []
    problems: list[str] = []
    for (number, _), row in zip(lines[1:], rows[1:], strict=True):
        wrong = _problem(row, header, at)
        if wrong:
            problems.append(f"{path}: line {number}: {wrong}")
        else:
            values.append([float(row[i]) for i in at])
    if problems:
        more = len(problems) - _LINES_SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise InputError(problems[:_LINES_SHOWN] + tail)
    if len(values) < LEAST_ROWS:
        raise InputError(f"{path}: {len(values)} measurements, at least {LEAST_ROWS} are needed")
    table = np.array(values)
    return Measurements(table[:, 1], table[:, 0], table[:, 2])


def _problem(row: list[str], header: list[str], at: list[int]) -> str | None:
    if len(row) != len(header):
        return f"{len(row)} values, the header has {len(header)}"
    numbers = []
    for i in at:
        try:
            number = float(row[i])
        except ValueError:
            return f"{header[i]}: {row[i]!r} is not a number"
        if not math.isfinite(number):
            return f"{header[i]}: {row[i].strip()} is not finite"
        numbers.append(number)
    tokens, activated, time_us = numbers
    if time_us <= 0:
        return f"microseconds: must be greater than 0, not {time_us:g}"
    if activated < 1 or tokens < activated:
        return f"{tokens:g} tokens for {activated:g} activated experts: each needs at least one"
    return None
