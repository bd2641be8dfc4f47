"""Build Pyomo models whose rules run once a component instead of once a row.

Inside :func:`declarative` every constraint and objective rule is called once, with placeholders
for its indices (Pyomo's templates); :mod:`moeopt.templates` expands what it returns with numpy. A
rule that looks at its indices (``if``, ``Constraint.Skip``, Python data) cannot be read this way:
it runs once a row as always in Pyomo, with the same result, only slower.

Pyomo's own switch (``TEMPLATIZE_CONSTRAINTS``) is not used: it makes one object a row, and it
fails on rules that it cannot read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from weakref import ref

from pyomo.common.errors import TemplateExpressionError
from pyomo.common.gc_manager import PauseGC
from pyomo.core.base.constraint import (
    Constraint,
    IndexedConstraint,
    ScalarConstraint,
    TemplateConstraintData,
    TemplateScalarConstraint,
)
from pyomo.core.base.initializer import IndexedCallInitializer, ScalarCallInitializer
from pyomo.core.base.objective import Objective, ScalarObjective, TemplateScalarObjective
from pyomo.core.base.set import SetData
from pyomo.core.expr import ExpressionType
from pyomo.core.expr.relational_expr import tuple_to_relational_expr
from pyomo.core.expr.template_expr import IndexTemplate, templatize_rule

#: (expression with placeholders, the row's placeholders)
Template = tuple[Any, tuple[IndexTemplate, ...]]


class TemplateIndexedConstraint(IndexedConstraint):
    """A templated constraint; Pyomo's row objects are made only when somebody looks at them."""

    template: Template
    made: dict[Any, Any] | None = None

    @property
    def _data(self) -> dict[Any, Any]:
        if self.made is None:
            component = ref(self)
            self.made = {
                index: TemplateConstraintData(self.template, component, index)
                for index in self.index_set()
            }
        return self.made

    @_data.setter
    def _data(self, rows: dict[Any, Any] | None) -> None:
        self.made = rows


@contextmanager
def declarative() -> Iterator[None]:
    """Run each rule once: ``with declarative(): model = formulation.build(data)``."""
    make_rows, make_objective = Constraint.construct, Objective.construct

    def construct_rows(self: Any, data: Any = None) -> None:
        if type(self) in (IndexedConstraint, ScalarConstraint) and _template_rows(self):
            return
        make_rows(self, data)

    def construct_objective(self: Any, data: Any = None) -> None:
        if type(self) is ScalarObjective and _template_objective(self):
            return
        make_objective(self, data)

    # Garbage collection is paused: nothing is dropped while a model grows, and looking is slow.
    with (
        patch.object(Constraint, "construct", construct_rows),
        patch.object(Objective, "construct", construct_objective),
        PauseGC(),
    ):
        yield


def template_of(component: Any) -> Template | None:
    """Return a component's template if it still tells all its rows, else None."""
    if isinstance(component, TemplateScalarConstraint | TemplateScalarObjective):
        return component.template_expr()
    if isinstance(component, TemplateIndexedConstraint):
        rows = component.made
        if rows is None or (
            len(rows) == len(component.index_set())
            and all(type(r) is TemplateConstraintData and r.active for r in rows.values())
        ):
            return component.template
    return None


def _template_rows(constraint: Any) -> bool:
    template = _templatize(constraint)
    if template is None or not template[0].is_expression_type(ExpressionType.RELATIONAL):
        return False
    if type(constraint) is ScalarConstraint:
        constraint.__class__ = TemplateScalarConstraint
        constraint._expr = template
        constraint._data = {None: constraint}
    else:
        del constraint._data
        constraint.__class__ = TemplateIndexedConstraint
        constraint.template = template
    constraint._constructed = True
    return True


def _template_objective(objective: Any) -> bool:
    template = _templatize(objective)
    if template is None:
        return False
    objective.__class__ = TemplateScalarObjective
    objective._args_ = template
    objective._data = {None: objective}
    objective._constructed = True
    objective.set_sense(objective._init_sense(objective.parent_block(), None))
    return True


def _templatize(component: Any) -> Template | None:
    """Run a component's rule with placeholders; None where the rule cannot be read so."""
    rule = component._rule
    if (
        component._constructed
        or type(rule) not in (IndexedCallInitializer, ScalarCallInitializer)
        or not component.index_set().isfinite()
    ):
        return None
    for index_set in component._anonymous_sets or ():
        index_set.construct()
    logger = logging.getLogger("pyomo.core.expr.template_expr")
    try:
        # Pyomo logs an error before it gives up, but giving up is no error here.
        with _no_guessing(), patch.object(logger, "disabled", True):
            expression, indices = templatize_rule(
                component.parent_block(), rule, component.index_set()
            )
    except Exception:
        # Whatever went wrong, the ordinary run of the rule shows it where it is a mistake.
        return None
    if type(expression) is tuple:
        expression = tuple_to_relational_expr(expression)
    return (expression, indices) if hasattr(expression, "is_expression_type") else None


@contextmanager
def _no_guessing() -> Iterator[None]:
    """Refuse ``placeholder in set``: a RangeSet would say False whatever the index will be."""
    contains: Callable[[Any, Any], bool] = SetData.__contains__

    def careful(self: Any, value: Any) -> bool:
        for part in value if type(value) is tuple else (value,):
            if isinstance(part, IndexTemplate) or getattr(part, "is_expression_type", bool)():
                raise TemplateExpressionError(part, "membership of an index not known yet")
        return contains(self, value)

    with patch.object(SetData, "__contains__", careful):
        yield
