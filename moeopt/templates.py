"""Expand Pyomo templates into sparse rows with numpy: no Python loop over rows or terms.

A rule run once with placeholders gives one expression for all its rows. Its placeholders are bound
to integer arrays, each along its own axis of a :class:`Frame`; a ``sum`` over a set adds an axis, a
``sum`` over a set that depends on other indices flattens the axes it depends on into one. Columns
and coefficients are then computed by broadcasting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyomo.common.numeric_types import native_numeric_types
from pyomo.core.base.expression import ScalarExpression
from pyomo.core.base.param import IndexedParam, Param, ParamData
from pyomo.core.base.set import (
    IndexedSet,
    SetData,
)
from pyomo.core.base.var import IndexedVar, VarData
from pyomo.core.expr.numeric_expr import (
    DivisionExpression,
    NegationExpression,
    ProductExpression,
    SumExpression,
)
from pyomo.core.expr.template_expr import GetItemExpression, IndexTemplate, TemplateSumExpression
from scipy import sparse

from moeopt.index_map import IndexMap, IntArray, LabelMap
from moeopt.pyomo_data import NotExpandable, family_arrays, index_map_of, param_array

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """Index values bound to arrays: one axis for each set iterated over.

    Attributes
    ----------
    shape : tuple of int
        Length of each axis; 1 where an axis was flattened into a later one.
    bound : dict
        Placeholder (by id) to (axis, values along this axis).
    rows : tuple of (axis, int array)
        The row number is the sum of these, broadcast.
    """

    shape: tuple[int, ...]
    bound: dict[int, tuple[int, IntArray]]
    rows: tuple[tuple[int, IntArray], ...]

    def along(self, axis: int, values: npt.NDArray) -> npt.NDArray:
        """Lay values along an axis."""
        return values.reshape((1,) * axis + (-1,) + (1,) * (len(self.shape) - axis - 1))

    def row_numbers(self) -> npt.NDArray:
        """Return the row of each cell (broadcastable to ``shape``)."""
        total = np.zeros((1,) * len(self.shape), dtype=np.int32)
        for axis, part in self.rows:
            total = total + self.along(axis, part)
        return total


class Terms:
    """Terms of a linear expression over many rows, as pieces of (row, column, coefficient)."""

    def __init__(self, rows: int) -> None:
        self.pieces: list[tuple[IntArray, IntArray, FloatArray]] = []
        self.constant = np.zeros(rows)

    def add(self, frame: Frame, column: npt.NDArray, coefficient: npt.NDArray) -> None:
        """Add one term for each cell of the frame."""
        shape = frame.shape
        self.pieces.append(
            (
                np.broadcast_to(frame.row_numbers(), shape).ravel(),
                np.broadcast_to(column, shape).ravel(),
                np.broadcast_to(np.asarray(coefficient, dtype=np.float64), shape).ravel(),
            )
        )

    def add_constant(self, frame: Frame, value: npt.NDArray) -> None:
        """Add one constant for each cell of the frame."""
        if value.ndim == 0 and value == 0:
            return
        rows = np.broadcast_to(frame.row_numbers(), frame.shape).ravel()
        weights = np.broadcast_to(value, frame.shape).ravel()
        self.constant += np.bincount(rows, weights, minlength=len(self.constant))

    def matrix(self, columns: int) -> sparse.csr_array:
        """Return all terms as a matrix: duplicates summed, no zeros, columns sorted."""
        shape = (len(self.constant), columns)
        if not self.pieces:
            return sparse.csr_array(shape)
        row, column, value = (np.concatenate(part) for part in zip(*self.pieces, strict=True))
        matrix = sparse.coo_array((value, (row, column)), shape=shape).tocsr()
        matrix.eliminate_zeros()
        matrix.sort_indices()
        return matrix


class Expander:
    """Expands templates over one layout of columns.

    Parameters
    ----------
    columns : dict of int to (int, IndexMap or LabelMap)
        First column and index set of each Var component, by its id.
    """

    def __init__(self, columns: dict[int, tuple[int, IndexMap | LabelMap]]) -> None:
        self.columns = columns
        self._index_maps: dict[int, tuple[Any, IndexMap | LabelMap]] = {}
        self._params: dict[int, tuple[FloatArray, npt.NDArray[np.bool_] | None]] = {}
        self._families: dict[int, tuple[IntArray, IntArray, list[IntArray]]] = {}

    # -- index sets ---------------------------------------------------------------------------

    def index_map(self, index_set: Any) -> IndexMap | LabelMap:
        """Return where the members of a Pyomo set lie."""
        known = self._index_maps.get(id(index_set))
        if known is None:
            # The set is kept beside its map, so that its id stays its own.
            known = index_set, index_map_of(index_set)
            self._index_maps[id(index_set)] = known
        return known[1]

    def integers(self, index_set: Any) -> IndexMap:
        """Return the same, for sets of integers only."""
        found = self.index_map(index_set)
        if not isinstance(found, IndexMap):
            raise NotExpandable(f"{index_set} has members that are no integers")
        return found

    # -- frames -------------------------------------------------------------------------------

    def frame(self, index_set: Any, indices: tuple[IndexTemplate, ...]) -> Frame:
        """Return the frame of a constraint's rows."""
        index_map = self.integers(index_set)
        if index_map.size >= 2**31:
            raise TypeError(f"{index_map.size} rows are more than 32-bit solvers can take")
        if not indices:
            return Frame((), {}, ())
        frame = Frame((), {}, ())
        frame = self._with_axes(frame, index_map, indices)
        rows, stride = [], index_map.size
        for axis, size in enumerate(index_map.sizes):
            stride = stride // size if size else 0
            rows.append((axis, np.arange(size, dtype=np.int32) * np.int32(stride)))
        return Frame(frame.shape, frame.bound, tuple(rows))

    def _with_axes(
        self, frame: Frame, index_map: IndexMap, indices: tuple[IndexTemplate, ...]
    ) -> Frame:
        if any(i._index is None for i in indices) or len(indices) != index_map.dimen:
            raise NotExpandable("an index of unknown length")
        bound, shape, first = dict(frame.bound), frame.shape, 0
        for factor in index_map.factors:
            for index, values in zip(
                indices[first : first + factor.dimen], factor.coordinates(), strict=True
            ):
                bound[id(index)] = len(shape), values
            shape += (factor.size,)
            first += factor.dimen
        return Frame(shape, bound, frame.rows)

    def _inner(self, frame: Frame, node: TemplateSumExpression) -> Frame:
        """Return the frame inside a ``sum``."""
        for group in node.template_iters():
            over = group[0]._set
            if isinstance(over, GetItemExpression):
                frame = self._flattened(frame, over, group)
            elif isinstance(over, SetData):
                frame = self._with_axes(frame, self.integers(over), group)
            else:
                raise NotExpandable(f"a sum over {type(over).__name__}")
        return frame

    def _flattened(
        self, frame: Frame, over: GetItemExpression, group: tuple[IndexTemplate, ...]
    ) -> Frame:
        """Iterate over one set for each combination of the indices that it depends on."""
        family, *where = over.args
        if not isinstance(family, IndexedSet):
            raise NotExpandable(f"a sum over {over}")
        first, size, members = self._family(family)
        # Pyomo takes the length of an index from the first set, which may be empty: then one
        # placeholder stands for the whole member.
        if len(group) != len(members or group):
            raise NotExpandable("an index of unknown length")
        chosen = self._position(self.integers(family.index_set()), where, frame)
        if (size[chosen] < 0).any():
            raise NotExpandable(f"{family.name} has no such member")
        # Axes along which the choice does not vary stay as they are.
        flat = [a for a, n in enumerate(chosen.shape) if n != 1]
        owner = chosen.reshape([chosen.shape[a] for a in flat]).ravel()
        counts = size[owner]
        place = np.repeat(np.arange(len(owner)), counts)
        start = np.cumsum(counts) - counts
        within = np.arange(len(place)) - start[place]
        at = np.unravel_index(place, [chosen.shape[a] for a in flat]) if flat else ()
        new = len(frame.shape)
        moved = dict(zip(flat, at, strict=True))

        def move(axis: int, values: IntArray) -> tuple[int, IntArray]:
            return (new, values[moved[axis]]) if axis in moved else (axis, values)

        bound = {key: move(*entry) for key, entry in frame.bound.items()}
        source = first[owner[place]] + within
        for index, values in zip(group, members or [source] * len(group), strict=True):
            bound[id(index)] = new, values[source]
        shape = tuple(1 if a in moved else n for a, n in enumerate(frame.shape))
        rows = tuple(move(*entry) for entry in frame.rows)
        return Frame((*shape, len(place)), bound, rows)

    def _family(self, family: IndexedSet) -> tuple[IntArray, IntArray, list[IntArray]]:
        """Return first member, number of members (-1: no set), and all members by dimension."""
        if id(family) not in self._families:
            self._families[id(family)] = family_arrays(family, self.integers(family.index_set()))
        return self._families[id(family)]

    def _position(
        self, index_map: IndexMap, where: list[Any], frame: Frame, dtype: type = np.int64
    ) -> npt.NDArray:
        arrays = []
        for w in where:
            values = self.value(w, frame)
            whole = values.astype(np.int64)
            if values.dtype.kind == "f" and (whole != values).any():
                raise NotExpandable("an index that is no integer")
            arrays.append(whole)
        try:
            found = index_map.position(arrays, dtype)
        except KeyError as missing:
            # The ordinary run of the rule tells which index it was.
            raise NotExpandable(str(missing)) from missing
        return found.reshape((1,) * (len(frame.shape) - found.ndim) + found.shape)

    # -- values -------------------------------------------------------------------------------

    def value(self, node: Any, frame: Frame) -> npt.NDArray:
        """Evaluate an expression without variables; broadcastable to the frame's shape."""
        if type(node) in native_numeric_types:
            return np.asarray(node)
        if isinstance(node, IndexTemplate):
            if id(node) not in frame.bound:
                raise NotExpandable("an index used outside its sum")
            return frame.along(*frame.bound[id(node)])
        if isinstance(node, ParamData):
            if node.value is None:
                raise NotExpandable(f"{node.name} has no value")
            return np.asarray(float(node.value))
        if isinstance(node, TemplateSumExpression):
            return self._summed(node, frame)
        if isinstance(node, GetItemExpression):
            return self._param_value(node, frame)
        if isinstance(node, ScalarExpression):
            return self.value(node.expr, frame)
        if isinstance(node, SumExpression):
            total: npt.NDArray = np.zeros((), dtype=np.int64)
            for part in node.args:
                total = total + self.value(part, frame)
            return total
        if isinstance(node, NegationExpression):
            return -self.value(node.args[0], frame)
        if isinstance(node, ProductExpression):
            return self.value(node.args[0], frame) * self.value(node.args[1], frame)
        if isinstance(node, DivisionExpression):
            divisor = self.value(node.args[1], frame)
            if not divisor.all():
                raise NotExpandable("division by zero")
            return self.value(node.args[0], frame) / divisor
        raise NotExpandable(f"{type(node).__name__} in a coefficient")

    def _summed(self, node: TemplateSumExpression, frame: Frame) -> FloatArray:
        strides = np.cumprod((1, *frame.shape[:0:-1]))[::-1] if frame.shape else ()
        cells = tuple(
            (axis, np.arange(size, dtype=np.int64) * stride)
            for axis, (size, stride) in enumerate(zip(frame.shape, strides, strict=True))
        )
        inner = self._inner(Frame(frame.shape, frame.bound, cells), node)
        sums = Terms(int(np.prod(frame.shape, dtype=np.int64)))
        sums.add_constant(inner, self.value(node.template_args()[0], inner))
        return sums.constant.reshape(frame.shape)

    def _param_value(self, node: GetItemExpression, frame: Frame) -> FloatArray:
        param, *where = node.args
        if not isinstance(param, IndexedParam):
            raise NotExpandable(f"{node} in a coefficient")
        index_map = self.integers(param.index_set())
        if id(param) not in self._params:
            self._params[id(param)] = param_array(param, index_map)
        values, missing = self._params[id(param)]
        at = self._position(index_map, where, frame)
        if missing is not None and missing[at].any():
            raise NotExpandable(f"{param.name} has no value there")
        return values[at]

    # -- linear expressions -------------------------------------------------------------------

    def add(self, terms: Terms, frame: Frame, node: Any, factors: tuple[Any, ...] = ()) -> None:
        """Add ``node`` times the factors to ``terms``.

        Factors are expressions: they are evaluated where the variable is met, in its own frame.
        A factor ``(node,)`` divides.
        """
        if not has_variable(node):
            terms.add_constant(frame, self._product((*factors, node), frame))
        elif isinstance(node, VarData):
            start, index_map = self.columns[id(node.parent_component())]
            if not isinstance(index_map, IndexMap):
                raise NotExpandable("a variable whose index is no integer")
            index = node.index()
            at = index if type(index) is tuple else () if index is None else (index,)
            self._add_column(terms, frame, start, index_map, list(at), factors)
        elif isinstance(node, GetItemExpression):
            var, *where = node.args
            if not isinstance(var, IndexedVar) or id(var) not in self.columns:
                raise NotExpandable(f"{node}")
            start, index_map = self.columns[id(var)]
            if not isinstance(index_map, IndexMap):
                raise NotExpandable(f"{var.name} has an index that is no integer")
            self._add_column(terms, frame, start, index_map, where, factors)
        elif isinstance(node, TemplateSumExpression):
            self.add(terms, self._inner(frame, node), node.template_args()[0], factors)
        elif isinstance(node, SumExpression):
            for part in node.args:
                self.add(terms, frame, part, factors)
        elif isinstance(node, NegationExpression):
            self.add(terms, frame, node.args[0], (*factors, -1.0))
        elif isinstance(node, ProductExpression):
            a, b = node.args
            if has_variable(a):
                a, b = b, a
            if has_variable(a):
                raise NotExpandable("a product of variables")
            self.add(terms, frame, b, (*factors, a))
        elif isinstance(node, DivisionExpression) and not has_variable(node.args[1]):
            self.add(terms, frame, node.args[0], (*factors, (node.args[1],)))
        elif isinstance(node, ScalarExpression):
            self.add(terms, frame, node.expr, factors)
        else:
            raise NotExpandable(f"{type(node).__name__}")

    def _add_column(
        self,
        terms: Terms,
        frame: Frame,
        start: int,
        index_map: IndexMap,
        where: list[Any],
        factors: tuple[Any, ...],
    ) -> None:
        column = self._position(index_map, where, frame, np.int32) + np.int32(start)
        terms.add(frame, column, self._product(factors, frame))

    def _product(self, factors: tuple[Any, ...], frame: Frame) -> npt.NDArray:
        product: npt.NDArray = np.ones(())
        for factor in factors:
            if type(factor) is tuple:
                divisor = self.value(factor[0], frame)
                if not divisor.all():
                    raise NotExpandable("division by zero")
                product = product / divisor
            else:
                product = product * self.value(factor, frame)
        return product


def has_variable(node: Any) -> bool:
    """Whether an expression (with placeholders) contains a variable."""
    if type(node) in native_numeric_types or isinstance(node, IndexTemplate | ParamData):
        return False
    if isinstance(node, VarData):
        return True
    if isinstance(node, TemplateSumExpression):
        return has_variable(node.template_args()[0])
    if isinstance(node, GetItemExpression):
        return not isinstance(node.args[0], Param)
    if getattr(node, "is_expression_type", bool)():
        return any(has_variable(part) for part in node.args)
    raise NotExpandable(f"{type(node).__name__}")
