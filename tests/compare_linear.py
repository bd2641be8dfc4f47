"""Compare two LinearModels row by row, with names: for every shipped formulation, and for tests."""

from __future__ import annotations

import itertools

import numpy as np

from moeopt.linear import Block, LinearModel


def member_names(blocks: dict[str, Block]) -> list[str]:
    """Names of all columns (or rows), in order."""
    names = []
    for name, block in blocks.items():
        index = block.index
        if index is None:
            index = tuple(itertools.product(*(range(n) for n in block.shape)))
        assert len(index) == block.size
        assert block.start == len(names)
        names += [f"{name}[{','.join(map(str, i))}]" if i else name for i in index]
    return names


def canonical_rows(model: LinearModel) -> dict[str, tuple]:
    """Each row by its name: its sorted terms by column name, and its sides.

    A row that no longer has terms and is satisfied says nothing, whatever its sides. The first
    coefficient is made positive: ``a <= b`` and ``-b <= -a`` are one row.
    """
    columns, rows = member_names(model.columns), member_names(model.rows)
    assert model.matrix.shape == (len(rows), len(columns))
    matrix = model.matrix
    found = {}
    for i, name in enumerate(rows):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        index = matrix.indices[part].tolist()
        assert index == sorted(set(index)), f"{name}: columns not sorted or not unique"
        values = matrix.data[part].tolist()
        assert 0.0 not in values, f"{name}: explicit zero"
        sides = float(model.row_lower[i]), float(model.row_upper[i])
        if not index and sides[0] <= 0.0 <= sides[1]:
            sides = (-np.inf, np.inf)
        terms = sorted(zip([columns[j] for j in index], values, strict=True))
        if terms and terms[0][1] < 0.0:
            terms = [(column, -value) for column, value in terms]
            sides = (-sides[1], -sides[0])
        found[name] = (terms, *sides)
    assert len(found) == len(rows)
    return found


def assert_same_rows(a: LinearModel, b: LinearModel) -> None:
    """Raise AssertionError unless both models are the same, exactly, row by row and by name."""
    assert list(a.columns) == list(b.columns)
    assert member_names(a.columns) == member_names(b.columns)
    rows_a, rows_b = canonical_rows(a), canonical_rows(b)
    assert rows_a.keys() == rows_b.keys()
    for name, row in rows_a.items():
        assert row == rows_b[name], f"row {name}: {row} != {rows_b[name]}"
    for what in ("cost", "lower", "upper", "integer"):
        first, second = getattr(a, what), getattr(b, what)
        assert np.array_equal(first, second), f"{what}: {first} != {second}"
    assert (a.sense, a.offset) == (b.sense, b.offset)
