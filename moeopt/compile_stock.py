"""Compile through Pyomo's own standard form: slow, independent, the oracle of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.base.constraint import (
    ScalarConstraint,
    TemplateConstraintData,
    TemplateScalarConstraint,
)
from pyomo.core.base.objective import ScalarObjective, TemplateScalarObjective
from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler
from scipy import sparse

from moeopt.declarative import TemplateIndexedConstraint
from moeopt.layout import Layout, block_of, components, members_of_rows, unfixed
from moeopt.linear import LinearModel


def compile_stock(model: pyo.ConcreteModel) -> LinearModel:
    """Compile a model as Pyomo does, every rule run for every row.

    The model is left as it was, but for the members of its variables, which are all made.
    Rows that Pyomo drops (no variable, satisfied) come back as empty rows without sides.

    Raises
    ------
    InfeasibleConstraintException
        A row without variables that is violated.
    """
    layout = Layout.of(model)
    with ExitStack() as stack:
        stack.enter_context(unfixed(model))
        for var in components(model, pyo.Var):
            # Pyomo's compiler knows only members that exist.
            for key in var.index_set() if var.index_set().isfinite() else ():
                var[key]
        for component in components(model, pyo.Constraint):
            stack.enter_context(_ordinary(component))
        for component in components(model, pyo.Objective):
            stack.enter_context(_ordinary(component))
        form = LinearStandardFormCompiler().write(model, mixed_form=True, set_sense=None)
        place, blocks = _row_places(model, layout)

    column = np.array([layout.column(v) for v in form.columns], dtype=np.int64)
    lower, upper = np.full(len(place), -np.inf), np.full(len(place), np.inf)
    stock = form.A.tocsr().tocoo()
    target = np.array([place[id(entry.constraint)] for entry in form.rows], dtype=np.int64)
    kept = np.ones(len(target), dtype=np.bool_)
    for i, (entry, side) in enumerate(zip(form.rows, form.rhs, strict=True)):
        if entry.bound_type <= 0:
            lower[target[i]] = side
        if entry.bound_type >= 0:
            upper[target[i]] = side
        # Pyomo writes a row with two sides twice, one after the other.
        kept[i] = not (i and target[i] == target[i - 1])
    keep = kept[stock.row]
    cost = np.zeros(layout.size)
    sense, offset = 1, 0.0
    if form.objectives:
        (objective,) = form.objectives
        sense = 1 if objective.sense == pyo.minimize else -1
        cost[column] = np.asarray(form.c.todense()).ravel()
        offset = float(form.c_offset[0])
    return LinearModel(
        matrix=sparse.coo_array(
            (stock.data[keep], (target[stock.row[keep]], column[stock.col[keep]])),
            shape=(len(place), layout.size),
        ).tocsr(),
        cost=cost,
        lower=layout.lower,
        upper=layout.upper,
        row_lower=lower,
        row_upper=upper,
        integer=layout.integer,
        offset=offset,
        sense=sense,
        columns=layout.blocks,
        rows=blocks,
    )


@contextmanager
def _ordinary(component: Any) -> Iterator[None]:
    """Run a templated component's rule for each member, for a while."""
    if isinstance(component, TemplateScalarConstraint | TemplateScalarObjective):
        scalar = component.__class__
        slot = "_expr" if isinstance(component, ScalarConstraint) else "_args_"
        template = getattr(component, slot)
        component.__class__ = ScalarConstraint if slot == "_expr" else ScalarObjective
        component.set_value(component._rule(component.parent_block(), None))
        try:
            yield
        finally:
            component.__class__ = scalar
            setattr(component, slot, template)
    elif isinstance(component, TemplateIndexedConstraint):
        made = component.made
        component._data = {}
        for key in component.index_set():
            component._setitem_when_not_present(key, component._rule(component.parent_block(), key))
        for key, row in (made or {}).items():
            if type(row) is not TemplateConstraintData:
                component._data[key] = row  # changed by hand
            elif not row.active:
                component._data[key].deactivate()
        try:
            yield
        finally:
            component._data = made
    else:
        yield


def _row_places(model: pyo.ConcreteModel, layout: Layout) -> tuple[dict[int, int], dict[str, Any]]:
    place: dict[int, int] = {}
    blocks = {}
    for constraint in components(model, pyo.Constraint):
        rows = [row for row in constraint.values() if row.active]
        members = members_of_rows(constraint, rows, layout.expander)
        blocks[constraint.name] = block_of(len(place), members)
        for row in rows:
            place[id(row)] = len(place)
    return place, blocks
