"""Compile a Pyomo model into a :class:`~moeopt.linear.LinearModel`: plain sparse arrays.

Rules that Pyomo could templatize (see :mod:`moeopt.declarative`) are expanded by numpy; all others
are walked row by row. Both ways give the same rows, and so does Pyomo's own standard form
(:func:`compile_stock`), which the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.common.gc_manager import PauseGC
from pyomo.core.expr import EqualityExpression, InequalityExpression, RangedExpression
from pyomo.repn import generate_standard_repn
from scipy import sparse

from moeopt.compile_stock import compile_stock
from moeopt.declarative import Template, declarative, template_of
from moeopt.index_map import IndexMap, LabelMap
from moeopt.layout import Layout, block_of, components, members_of_rows, unfixed
from moeopt.linear import FloatArray, LinearModel
from moeopt.pyomo_data import NotExpandable
from moeopt.templates import Frame, Terms, has_variable

__all__ = ["compile_model", "compile_stock", "declarative"]


@dataclass
class Rows:
    """The rows of one constraint component."""

    name: str
    members: IndexMap | LabelMap
    matrix: sparse.csr_array
    lower: FloatArray
    upper: FloatArray


def compile_model(model: pyo.ConcreteModel) -> LinearModel:
    """Compile a linear Pyomo model.

    Columns lie in the order of declaration of their components, members in the order of the index
    set; rows likewise. A fixed variable stays a column, with both bounds at its value. A row whose
    terms all vanish stays a row.

    Raises
    ------
    TypeError
        Names the component that is not linear, or of a kind that has no place in a linear model.
    """
    layout = Layout.of(model)
    with PauseGC(), unfixed(model):
        rows = [_rows(c, layout) for c in components(model, pyo.Constraint)]
        sense, cost, offset = _objective(model, layout)
    blocks, start = {}, 0
    for part in rows:
        blocks[part.name] = block_of(start, part.members)
        start += part.members.size
    return LinearModel(
        matrix=_stacked([part.matrix for part in rows], layout.size),
        cost=cost,
        lower=layout.lower,
        upper=layout.upper,
        row_lower=np.concatenate([np.zeros(0), *(part.lower for part in rows)]),
        row_upper=np.concatenate([np.zeros(0), *(part.upper for part in rows)]),
        integer=layout.integer,
        offset=offset,
        sense=sense,
        columns=layout.blocks,
        rows=blocks,
    )


def _stacked(parts: list[sparse.csr_array], columns: int) -> sparse.csr_array:
    """Stack matrices on top of each other (SciPy's ``vstack`` copies more)."""
    if not parts:
        return sparse.csr_array((0, columns))
    if len(parts) == 1:
        return parts[0]
    nonzeros = sum(part.nnz for part in parts)
    index = np.int32 if nonzeros < 2**31 else np.int64
    starts, shift = [np.zeros(1, dtype=index)], 0
    for part in parts:
        starts.append((part.indptr[1:] + shift).astype(index))
        shift += part.nnz
    return sparse.csr_array(
        (
            np.concatenate([part.data for part in parts]),
            np.concatenate([part.indices for part in parts], dtype=index),
            np.concatenate(starts),
        ),
        shape=(sum(part.shape[0] for part in parts), columns),
    )


def _rows(constraint: Any, layout: Layout) -> Rows:
    template = template_of(constraint)
    if template is not None:
        try:
            return _expanded(constraint, template, layout)
        except NotExpandable:
            pass  # the rule is run for each row instead
    return _walked(constraint, layout)


def _expanded(constraint: Any, template: Template, layout: Layout) -> Rows:
    """Expand a templated constraint by numpy."""
    expression, indices = template
    expander, members = layout.expander, layout.expander.integers(constraint.index_set())
    frame = expander.frame(constraint.index_set(), indices)
    terms = Terms(members.size)
    lower: Any = None
    upper: Any = None
    if isinstance(expression, RangedExpression):
        lower, body, upper = expression.args
        expander.add(terms, frame, body)
    elif isinstance(expression, EqualityExpression | InequalityExpression):
        # As Pyomo does: a side without variables is the bound of the other one.
        left, right = expression.args
        equal = isinstance(expression, EqualityExpression)
        if not has_variable(right):
            expander.add(terms, frame, left)
            lower, upper = (right if equal else None), right
        elif not has_variable(left):
            expander.add(terms, frame, right)
            lower, upper = left, (left if equal else None)
        else:
            expander.add(terms, frame, left)
            expander.add(terms, frame, right, (-1.0,))
            lower, upper = (0.0 if equal else None), 0.0
    else:
        raise NotExpandable(f"{type(expression).__name__}")
    if getattr(expression, "_strict", False) not in (False, (False, False)):
        raise NotExpandable("a strict inequality")

    def side(bound: Any, open_side: float) -> FloatArray:
        if bound is None:
            return np.full(members.size, open_side)
        value = np.broadcast_to(expander.value(bound, frame), frame.shape).ravel()
        return value - terms.constant

    return Rows(
        constraint.name,
        members,
        terms.matrix(layout.size),
        side(lower, -np.inf),
        side(upper, np.inf),
    )


def _walked(constraint: Any, layout: Layout) -> Rows:
    """Walk the expression of each row, as Pyomo does."""
    rows = [row for row in constraint.values() if row.active]
    terms = Terms(len(rows))
    lower, upper = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    walk = Walk(terms, layout)
    for i, row in enumerate(rows):
        _ = row.expr  # a template turns into an ordinary row when it is asked for
        try:
            low, body, high = row.to_bounded_expression(evaluate_bounds=True)
        except ValueError as problem:
            raise TypeError(f"constraint {row.name}: {problem}") from problem
        walk.add(i, body, f"constraint {row.name}")
        if low is not None:
            lower[i] = low - terms.constant[i]
        if high is not None:
            upper[i] = high - terms.constant[i]
    walk.done()
    return Rows(
        constraint.name,
        members_of_rows(constraint, rows, layout.expander),
        terms.matrix(layout.size),
        lower,
        upper,
    )


class Walk:
    """Collects the terms of ordinary expressions."""

    def __init__(self, terms: Terms, layout: Layout) -> None:
        self.terms, self.layout = terms, layout
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []

    def add(self, row: int, expression: Any, name: str) -> None:
        """Add the terms of one row."""
        repn = generate_standard_repn(expression, compute_values=True, quadratic=False)
        if repn.nonlinear_expr is not None:
            raise TypeError(f"{name} is not linear")
        self.terms.constant[row] += repn.constant
        self.rows += [row] * len(repn.linear_vars)
        self.columns += [self.layout.column(v) for v in repn.linear_vars]
        self.values += repn.linear_coefs

    def done(self) -> None:
        """Hand all terms over."""
        self.terms.pieces.append(
            (np.array(self.rows, int), np.array(self.columns, int), np.array(self.values, float))
        )


# -- objective ----------------------------------------------------------------------------------


def _objective(model: pyo.ConcreteModel, layout: Layout) -> tuple[int, FloatArray, float]:
    """Return sense, cost and offset."""
    active = [o for c in components(model, pyo.Objective) for o in c.values() if o.active]
    if not active:
        return 1, np.zeros(layout.size), 0.0
    if len(active) > 1:
        raise TypeError(f"several objectives: {', '.join(o.name for o in active)}")
    objective = active[0]
    sense = 1 if objective.sense == pyo.minimize else -1
    terms = Terms(1)
    template = template_of(objective)
    try:
        if template is None:
            raise NotExpandable("an ordinary expression")
        layout.expander.add(terms, Frame((), {}, ()), template[0])
    except NotExpandable:
        terms = Terms(1)
        walk = Walk(terms, layout)
        walk.add(0, objective.expr, f"objective {objective.name}")
        walk.done()
    cost = np.zeros(layout.size)
    for _, column, value in terms.pieces:
        cost += np.bincount(column, value, minlength=layout.size)
    return sense, cost, float(terms.constant[0])
