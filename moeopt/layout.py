"""Where each variable of a Pyomo model lies among the columns, and its bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo

from moeopt.declarative import TemplateIndexedConstraint
from moeopt.index_map import IndexMap, LabelMap, Members
from moeopt.linear import Block, FloatArray
from moeopt.pyomo_data import integer_members
from moeopt.templates import Expander

#: Components that hold data or structure only; any other that is active is refused.
PASSIVE = (pyo.Set, pyo.RangeSet, pyo.SetOf, pyo.Param, pyo.Expression, pyo.Block, pyo.Suffix)


@dataclass
class Layout:
    """Where each variable lies, and its bounds."""

    blocks: dict[str, Block]
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.bool_]
    expander: Expander
    _positions: dict[int, dict[Any, int]]

    @classmethod
    def of(cls, model: pyo.ConcreteModel) -> Layout:
        """Lay out the columns of a model."""
        for component in model.component_objects(active=True, descend_into=True):
            if component.ctype not in (pyo.Var, pyo.Constraint, pyo.Objective, *PASSIVE):
                raise TypeError(
                    f"{component.name}: a {component.ctype.__name__} has no place in a linear model"
                )
        expander = Expander({})
        blocks, parts, start = {}, [], 0
        for var in components(model, pyo.Var):
            members = _members_of(var, expander)
            expander.columns[id(var)] = start, members
            blocks[var.name] = block_of(start, members)
            parts.append(_bounds(var, members))
            start += members.size
        if start >= 2**31:
            raise TypeError(f"{start} columns are more than 32-bit solvers can take")
        lower, upper, integer = (
            [np.concatenate(p) for p in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 3
        )
        return cls(blocks, lower, upper, integer.astype(np.bool_), expander, {})

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.lower)

    def column(self, member: Any) -> int:
        """Return the column of one variable."""
        var = member.parent_component()
        start, members = self.expander.columns[id(var)]
        if id(var) not in self._positions:
            self._positions[id(var)] = {key: i for i, key in enumerate(members.tuples())}
        return start + self._positions[id(var)][index_tuple(member.index())]


def components(model: pyo.ConcreteModel, ctype: type) -> Iterator[Any]:
    """Active components of one kind, in order of declaration."""
    for component in model.component_objects(ctype, active=True, descend_into=True):
        # Asking a templated constraint would make all its rows.
        if isinstance(component, TemplateIndexedConstraint) or not component.is_reference():
            yield component


def block_of(start: int, members: IndexMap | LabelMap) -> Block:
    """Return the block of an index set."""
    return Block(start, members.shape, None if members.is_box else members)


def index_tuple(index: Any) -> tuple[Any, ...]:
    """Return a Pyomo index as a tuple: scalars have none, single indices are bare."""
    return index if type(index) is tuple else () if index is None else (index,)


def members_of_rows(constraint: Any, rows: list[Any], expander: Expander) -> IndexMap | LabelMap:
    """Return the index set of a constraint's rows, some of which may have been skipped."""
    index_set = constraint.index_set()
    if index_set.isfinite() and len(rows) == len(index_set):
        return expander.index_map(index_set)
    keys = [row.index() for row in rows]
    members = integer_members(keys)
    if members is not None:
        return IndexMap((Members(members),))
    return LabelMap(tuple(index_tuple(key) for key in keys))


def _members_of(component: Any, expander: Expander) -> IndexMap | LabelMap:
    if component.index_set().isfinite():
        return expander.index_map(component.index_set())
    return LabelMap(tuple(index_tuple(key) for key in component._data))


def _bounds(
    var: Any, members: IndexMap | LabelMap
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Bounds and integrality of all members, made or not (``dense=False`` makes none)."""
    lower, upper = np.full(members.size, -np.inf), np.full(members.size, np.inf)
    integer = np.zeros(members.size, dtype=np.bool_)
    made = var._data
    if len(made) < members.size:
        block, domain_of, bounds_of = var.parent_block(), var._rule_domain, var._rule_bounds
        constant = domain_of.constant() and (bounds_of is None or bounds_of.constant())
        for place, key in [(slice(None), ())] if constant else enumerate(members.tuples()):
            index = key[0] if len(key) == 1 else key
            pair = (None, None) if bounds_of is None else bounds_of(block, index)
            lower[place], upper[place], integer[place] = _interval(
                var, domain_of(block, index, var), *pair
            )
    for place, member in zip(_places(var, members), made.values(), strict=True):
        pair = (member.lower, member.upper) if not member.fixed else (_fixed_value(member),) * 2
        lower[place], upper[place], integer[place] = _interval(var, member.domain, *pair)
    return lower, upper, integer


def _places(var: Any, members: IndexMap | LabelMap) -> Iterable[int]:
    """Places of the members that were made, in the order of their making."""
    own_order = var._rule_init is not None and var._rule_init.contains_indices()
    if var._dense and not own_order:
        return range(members.size)
    if not var._data:
        return ()
    place = {key: i for i, key in enumerate(members.tuples())}
    return [place[index_tuple(key)] for key in var._data]


def _fixed_value(member: Any) -> float:
    if member.value is None:
        raise TypeError(f"{member.name} is fixed, but has no value")
    return member.value


def _interval(var: Any, domain: Any, lower: Any, upper: Any) -> tuple[float, float, bool]:
    """Intersect a domain with bounds."""
    start, end, step = domain.get_interval()
    if step not in (0, 1):
        raise TypeError(f"{var.name}: its domain {domain.name} is no interval")
    low = [float(pyo.value(v)) for v in (start, lower) if v is not None]
    high = [float(pyo.value(v)) for v in (end, upper) if v is not None]
    return max(low, default=-np.inf), min(high, default=np.inf), step == 1


@contextmanager
def unfixed(model: pyo.ConcreteModel) -> Iterator[None]:
    """Treat fixed variables as variables: their bounds say that they are fixed."""
    fixed = [
        member
        for var in components(model, pyo.Var)
        for member in var._data.values()
        if member.fixed
    ]
    for member in fixed:
        member.fixed = False
    try:
        yield
    finally:
        for member in fixed:
            member.fixed = True
