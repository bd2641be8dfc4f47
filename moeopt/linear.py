"""LinearModel: a mixed-integer linear program as plain arrays. No Pyomo, no solver."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moeopt.index_map import IndexMap, LabelMap

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Columns (or rows) of one named component of a formulation.

    Attributes
    ----------
    start : int
        First column (or row).
    shape : tuple of int
        Shape of the component's index set when it is a product of ranges 0..n-1 (C order),
        else ``(n,)``. A scalar component has shape ``()``.
    members : IndexMap, LabelMap or None
        The component's index set where it is no product of ranges 0..n-1.
    """

    start: int
    shape: tuple[int, ...]
    members: IndexMap | LabelMap | None = None

    @cached_property
    def index(self) -> tuple[tuple[Hashable, ...], ...] | None:
        """Index tuples in column order where the set is no product of ranges; made on demand."""
        return None if self.members is None else tuple(self.members.tuples())

    @property
    def size(self) -> int:
        """Number of columns (or rows)."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class LinearModel:
    """Minimise or maximise ``cost @ x + offset`` over linear rows and bounds.

    ``row_lower <= matrix @ x <= row_upper``, ``lower <= x <= upper``.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array, shape (rows, columns)
        No explicit zeros, no duplicates, column indices sorted.
    cost, lower, upper : float arrays, shape (columns,)
    row_lower, row_upper : float arrays, shape (rows,)
        ±inf where a side is open.
    integer : bool array, shape (columns,)
    sense : {1, -1}
        1 minimises, -1 maximises.
    columns, rows : dict of str to Block
        Where each component of the formulation lies.
    """

    matrix: sparse.csr_array
    cost: FloatArray
    lower: FloatArray
    upper: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    integer: npt.NDArray[np.bool_]
    offset: float = 0.0
    sense: int = 1
    columns: dict[str, Block] = field(default_factory=dict)
    rows: dict[str, Block] = field(default_factory=dict)

    def relax(self) -> LinearModel:
        """Return the LP relaxation: the same rows, no integrality."""
        return replace(self, integer=np.zeros_like(self.integer))

    @property
    def size(self) -> dict[str, int]:
        """Rows, columns, nonzeros and integer columns."""
        return {
            "rows": self.matrix.shape[0],
            "columns": self.matrix.shape[1],
            "nonzeros": int(self.matrix.nnz),
            "integers": int(self.integer.sum()),
        }


class Values:
    """Values of a formulation's variables by component name, as arrays.

    ``values["x"]`` has the shape of x's index set. Integer components are rounded to integers.
    """

    def __init__(self, model: LinearModel, x: npt.ArrayLike) -> None:
        self._model = model
        self._x = np.asarray(x, dtype=np.float64)

    def __getitem__(self, name: str) -> FloatArray:
        block = self._model.columns[name]
        part = slice(block.start, block.start + block.size)
        values = self._x[part].copy()
        whole = self._model.integer[part]
        values[whole] = np.round(values[whole])
        return values.reshape(block.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._model.columns
