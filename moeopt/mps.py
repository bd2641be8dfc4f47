"""Write a :class:`~moeopt.linear.LinearModel` as a free MPS file, for any other solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from scipy import sparse

from moeopt.linear import Block, LinearModel

OBJECTIVE = "COST"


def write_mps(model: LinearModel, path: str | Path) -> None:
    """Write a model with names such as ``x[0,3,1]``.

    MPS minimises: a maximisation is written with its cost negated, and a comment says so. Numbers
    are written in full (they read back exactly). A range whose width is no double is widened in
    its last place.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in _lines(model))


def member_names(blocks: dict[str, Block], size: int) -> list[str]:
    """Names of all columns (or rows), in order; blanks become ``_``."""
    names = [f"{i}" for i in range(size)]
    for name, block in blocks.items():
        index = block.index
        if index is None:
            index = tuple(itertools.product(*(range(n) for n in block.shape)))
        for i, key in enumerate(index, start=block.start):
            full = f"{name}[{','.join(map(str, key))}]" if key else name
            names[i] = "_".join(full.split())
    if len({*names, OBJECTIVE}) != size + 1:
        names = [f"{name}#{i}" for i, name in enumerate(names)]
    return names


def _lines(model: LinearModel) -> Iterator[str]:
    rows = member_names(model.rows, model.matrix.shape[0])
    columns = member_names(model.columns, model.matrix.shape[1])
    if model.sense == -1:
        yield "* maximise: the cost is negated, and so is the optimum"
    yield "NAME moeopt"
    yield "ROWS"
    yield f" N {OBJECTIVE}"
    sides = [
        _side(lower, upper)
        for lower, upper in zip(model.row_lower.tolist(), model.row_upper.tolist(), strict=True)
    ]
    for name, (kind, _, _) in zip(rows, sides, strict=True):
        yield f" {kind} {name}"
    yield "COLUMNS"
    yield from _columns(model, rows, columns)
    yield "RHS"
    offset = model.sense * model.offset
    if offset:
        yield f" RHS {OBJECTIVE} {-offset!r}"
    for name, (_, side, _) in zip(rows, sides, strict=True):
        if side:
            yield f" RHS {name} {side!r}"
    yield "RANGES"
    for name, (_, _, width) in zip(rows, sides, strict=True):
        if width is not None:
            yield f" RANGE {name} {width!r}"
    yield "BOUNDS"
    for name, lower, upper, whole in zip(
        columns,
        model.lower.tolist(),
        model.upper.tolist(),
        model.integer.tolist(),
        strict=True,
    ):
        yield from _bounds(name, lower, upper, whole)
    yield "ENDATA"


def _side(lower: float, upper: float) -> tuple[str, float, float | None]:
    """Return the kind of a row, its right-hand side and its range."""
    if lower == upper:
        return "E", lower, None
    if math.isinf(lower):
        return ("N", 0.0, None) if math.isinf(upper) else ("L", upper, None)
    if math.isinf(upper):
        return "G", lower, None
    width = upper - lower
    if upper - width == lower:
        return "L", upper, width
    while lower + width < upper:
        width = math.nextafter(width, math.inf)
    return "G", lower, width


def _columns(model: LinearModel, rows: list[str], columns: list[str]) -> Iterator[str]:
    matrix = sparse.csc_array(model.matrix)
    start, row, value = matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()
    cost = (model.sense * model.cost).tolist()
    inside = False
    for j, (name, whole) in enumerate(zip(columns, model.integer.tolist(), strict=True)):
        if whole != inside:
            yield f" MARKER 'MARKER' '{'INTORG' if whole else 'INTEND'}'"
            inside = whole
        if cost[j] or start[j] == start[j + 1]:  # a column without entries must be named, too
            yield f" {name} {OBJECTIVE} {cost[j]!r}"
        for k in range(start[j], start[j + 1]):
            yield f" {name} {rows[row[k]]} {value[k]!r}"
    if inside:
        yield " MARKER 'MARKER' 'INTEND'"


def _bounds(name: str, lower: float, upper: float, whole: bool) -> Iterator[str]:
    if lower == upper:
        yield f" FX BOUND {name} {lower!r}"
    elif math.isinf(lower) and math.isinf(upper):
        yield f" FR BOUND {name}"
    else:
        # Readers differ in what is the default of an integer column, and of a negative upper bound.
        if math.isinf(lower):
            yield f" MI BOUND {name}"
        elif lower or whole or upper <= 0:
            yield f" LO BOUND {name} {lower!r}"
        if not math.isinf(upper):
            yield f" UP BOUND {name} {upper!r}"
        elif whole:
            yield f" PL BOUND {name}"
