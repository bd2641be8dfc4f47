"""Read Pyomo's sets and parameters into arrays."""

from __future__ import annotations

from itertools import chain, repeat
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
from pyomo.core.base.indexed_component import UnindexedComponent_set
from pyomo.core.base.param import IndexedParam, Param
from pyomo.core.base.set import FiniteRangeSetData, IndexedSet, SetProduct

from moeopt.index_map import Factor, IndexMap, IntArray, LabelMap, Members, Range
from moeopt.linear import FloatArray


class NotExpandable(Exception):
    """A template that needs the ordinary, slower way: one run of the rule for each row."""


def index_map_of(index_set: Any) -> IndexMap | LabelMap:
    """Return where the members of a finite Pyomo set lie; products are kept as factors."""
    if index_set is UnindexedComponent_set:
        return IndexMap()
    if isinstance(index_set, SetProduct):
        parts = [index_map_of(s) for s in index_set.subsets(expand_all_set_operators=False)]
        if all(isinstance(p, IndexMap) for p in parts):
            factors: tuple[Factor, ...] = ()
            for part in parts:
                assert isinstance(part, IndexMap)
                factors += part.factors
            return IndexMap(factors)
    if isinstance(index_set, FiniteRangeSetData):
        ranges = list(index_set.ranges())
        # A range of one member has step 0 in Pyomo.
        if len(ranges) == 1 and ranges[0].step in (0, 1) and type(ranges[0].start) is int:
            return IndexMap((Range(ranges[0].start, ranges[0].end - ranges[0].start + 1),))
    members = list(index_set)
    if not members and type(index_set.dimen) is int:
        return IndexMap((Members(np.zeros((0, index_set.dimen), dtype=np.int64)),))
    integers = integer_members(members)
    if integers is not None:
        return IndexMap((Members(integers),))
    return LabelMap(tuple(m if type(m) is tuple else (m,) for m in members))


def integer_members(members: list[Any]) -> IntArray | None:
    """Members as an array of shape (size, dimen); None where they are no integers of one length."""
    if not members:
        return None
    dimen = len(members[0]) if type(members[0]) is tuple else 0
    if dimen:
        if set(map(type, members)) != {tuple} or set(map(len, members)) != {dimen}:
            return None
        members = list(chain.from_iterable(members))
    try:
        array = np.array(members)
    except ValueError:  # of mixed lengths
        return None
    if array.dtype.kind != "i" or array.ndim != 1:
        return None
    return array.reshape(-1, max(dimen, 1)).astype(np.int64, copy=False)


def key_positions(component: Any, index_map: IndexMap) -> IntArray:
    """Positions of a component's stored members, in their own order."""
    stored = component._data
    if len(stored) == index_map.size and not _has_own_keys(component):
        return np.arange(index_map.size)
    if not stored:
        return np.zeros(0, dtype=np.int64)
    keys = integer_members(list(stored))
    if keys is None:
        raise NotExpandable(f"{component.name} has an index that is no integer")
    return index_map.position(list(keys.T))


def _has_own_keys(component: Any) -> bool:
    """Whether the initial values came with their indices (a dict), in any order."""
    rule = component._init_values if isinstance(component, IndexedSet) else component._rule
    return rule is None or rule.contains_indices()


def param_array(
    param: IndexedParam, index_map: IndexMap
) -> tuple[FloatArray, npt.NDArray[np.bool_] | None]:
    """Values of a Param by position, and where it has none."""
    stored = param._data
    raw = [v.value for v in stored.values()] if param.mutable else list(stored.values())
    place = key_positions(param, index_map)
    values, missing = np.zeros(index_map.size), np.ones(index_map.size, dtype=np.bool_)
    given = np.array([v is not None for v in raw], dtype=np.bool_)
    values[place] = np.array([0.0 if v is None else v for v in raw], dtype=np.float64)
    missing[place] = ~given
    default = param.default()
    if missing.any() and default is not Param.NoValue:
        if type(default) is FunctionType:
            index = index_map.coordinates()[missing].T.tolist()
            values[missing] = list(map(default, repeat(param.parent_block()), *index))
        else:
            values[missing] = float(default)
        missing[:] = False
    return values, missing if missing.any() else None


def family_arrays(
    family: IndexedSet, index_map: IndexMap
) -> tuple[IntArray, IntArray, list[IntArray]]:
    """Sets of an indexed set: first member and number (-1: no set) of each, and all members.

    The members come as one array for each of their dimensions, one set after the other.
    """
    sets = list(family._data.values())
    place = key_positions(family, index_map)
    counts = np.fromiter(map(len, sets), dtype=np.int64, count=len(sets))
    first = np.zeros(index_map.size, dtype=np.int64)
    size = np.full(index_map.size, -1, dtype=np.int64)
    size[place] = counts
    first[place] = np.cumsum(counts) - counts
    flat = list(chain.from_iterable(sets))
    members = integer_members(flat) if flat else np.zeros((0, 0), dtype=np.int64)
    if members is None:
        raise NotExpandable(f"{family.name} has members that are no integers")
    return first, size, [np.ascontiguousarray(column) for column in members.T]
