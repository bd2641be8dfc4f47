"""The numpy expander, the row-by-row walk and Pyomo's own standard form give the same rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyomo.environ as pyo
import pytest
from compare_linear import assert_same_rows, member_names

from moeopt import compile as compile_module
from moeopt.compile import compile_model, compile_stock, declarative
from moeopt.declarative import template_of

LAYERS, EXPERTS, GPUS, CLASSES, WAVES = 2, 5, 3, 2, 2
SCENARIOS = {
    (0, 0): [0, 2, 3],
    (0, 1): [1, 4],
    (0, 2): [4],
    (1, 0): [0, 1, 2, 3, 4],
    (1, 1): [],
}


def base() -> Any:
    """Sets, parameters and variables in all the ways that formulations declare them."""
    m = pyo.ConcreteModel()
    m.L = pyo.RangeSet(0, LAYERS - 1)
    m.E = pyo.RangeSet(0, EXPERTS - 1)
    m.G = pyo.RangeSet(0, GPUS - 1)
    m.C = pyo.RangeSet(0, CLASSES - 1)
    m.W = pyo.RangeSet(1, WAVES)  # not 0-based
    m.ODD = pyo.RangeSet(1, EXPERTS - 1, 2)
    m.OMEGA = pyo.Set(dimen=2, initialize=list(SCENARIOS))
    m.A = pyo.Set(m.OMEGA, initialize=SCENARIOS)
    m.OE = pyo.Set(dimen=3, initialize=[(l, s, e) for (l, s), a in SCENARIOS.items() for e in a])
    m.OEG = m.OE * m.G
    m.BEFORE = pyo.Set(m.E, initialize=lambda m, e: range(e))
    m.PAIRS = pyo.Set(m.L, dimen=2, initialize={0: [(0, 1), (2, 4)], 1: [(3, 0)]})
    m.SYM = pyo.Set(
        dimen=3, initialize=[(l, e, g) for l in (1, 0) for e in range(1, 4) for g in (2, 1)]
    )
    m.NAMES = pyo.Set(initialize=["hot", "cold"])
    m.EMPTY = pyo.Set(dimen=2, initialize=[])
    m.p = pyo.Param(m.OMEGA, initialize={(l, s): (l + 2 * s) / 8 for l, s in SCENARIOS})
    # Given in another order than the index set's.
    m.n = pyo.Param(
        m.OE, initialize={k: float(sum(k)) for k in reversed(list(m.OE))}, within=pyo.Reals
    )
    m.w = pyo.Param(m.L, m.E, initialize=lambda m, l, e: 3 * l - e)
    m.sparse = pyo.Param(m.L, m.E, initialize={(1, 2): 0.5, (0, 1): -2}, default=7)
    m.ruled = pyo.Param(m.L, m.E, initialize={(1, 2): 0.5}, default=lambda m, l, e: 4 * l + e)
    m.holes = pyo.Param(m.L, m.E, initialize={(1, 2): 0.5})
    m.kept = pyo.Param(m.E, initialize={0: 0, 1: 2, 2: 0, 3: 1, 4: 0})
    m.moving = pyo.Param(m.E, initialize=lambda m, e: e + 0.25, mutable=True)
    m.after = pyo.Param(m.E, initialize={e: (e + 2) % EXPERTS for e in range(EXPERTS)})
    m.a = pyo.Param(initialize=1.5)
    m.b = pyo.Param(initialize=0.25, mutable=True)
    m.count = pyo.Param(m.C, initialize={0: 4, 1: 6})
    m.usage = pyo.Param(m.C, m.L, m.E, initialize=lambda m, c, l, e: (c + l + e) % 3)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(m.OMEGA, domain=pyo.NonNegativeIntegers, bounds=(0, 4), dense=False)
    m.y = pyo.Var(m.OE, m.G, domain=pyo.Binary, dense=False)
    m.z = pyo.Var(m.C, m.W, m.G, domain=pyo.NonNegativeIntegers, dense=False)
    m.q = pyo.Var(m.L, bounds=lambda m, l: (-l, 2 * l + 1))
    m.free = pyo.Var(m.E, domain=pyo.Reals, dense=False)
    m.tau = pyo.Var(domain=pyo.NonNegativeReals)
    m.named = pyo.Var(m.NAMES, m.E, dense=False)
    m.total = pyo.Expression(expr=3 * m.tau - m.q[1])
    return m


# Rule forms that are expanded: name -> (index sets, rule).
EXPANDED: dict[str, tuple[Callable[[Any], tuple], Callable[..., Any]]] = {
    "load": (
        lambda m: (m.OMEGA, m.G),
        lambda m, l, s, g: sum(m.x[l, e, g] for e in m.A[l, s]) <= m.T[l, s],
    ),
    "link": (lambda m: (m.OEG,), lambda m, l, s, e, g: m.y[l, s, e, g] <= m.x[l, e, g]),
    "link_two_sets": (lambda m: (m.OE, m.G), lambda m, l, s, e, g: m.y[l, s, e, g] <= m.x[l, e, g]),
    "time": (
        lambda m: (m.OMEGA, m.G),
        lambda m, l, s, g: (
            m.T[l, s] >= m.a + sum((m.b + m.b * m.n[l, s, e]) * m.x[l, e, g] for e in m.A[l, s])
        ),
    ),
    "served": (
        lambda m: (m.C,),
        lambda m, c: sum(m.z[c, w, g] for w in m.W for g in m.G) == m.count[c],
    ),
    "routed": (
        lambda m: (m.W, m.L, m.E),
        lambda m, w, l, e: (
            sum(m.x[l, e, g] for g in m.G)
            == sum(m.usage[c, l, e] * m.z[c, w, g] for c in m.C for g in m.G)
        ),
    ),
    "symmetry": (
        lambda m: (m.SYM,),
        lambda m, l, e, g: m.x[l, e, g] <= sum(m.x[l, j, g - 1] for j in m.BEFORE[e]),
    ),
    "defaults": (
        lambda m: (m.L, m.E),
        lambda m, l, e: sum(m.sparse[l, e] * m.x[l, e, g] for g in m.G) <= m.tau * m.ruled[l, e],
    ),
    "mutable": (
        lambda m: (m.L,),
        lambda m, l: sum(m.moving[e] * m.x[l, e, g] for e in m.E for g in m.G) >= m.b,
    ),
    "signs": (
        lambda m: (m.L, m.E),
        lambda m, l, e: -m.x[l, e, 0] - 2 * (m.x[l, e, 1] - m.free[e] / 4) >= -(m.q[l] + 1),
    ),
    "scaled_sum": (
        lambda m: (m.L,),
        lambda m, l: m.a * (2 * sum(m.w[l, e] * m.x[l, e, 0] for e in m.E) - 3) / m.b <= l + 1,
    ),
    "constants_on_both_sides": (
        lambda m: (m.OE,),
        lambda m, l, s, e: m.x[l, e, 1] + 2 + m.n[l, s, e] <= 5 - m.a,
    ),
    "constant_left": (lambda m: (m.L,), lambda m, l: 2 * l + 1 >= m.q[l] - 3),
    "ranged": (
        lambda m: (m.L, m.G),
        lambda m, l, g: pyo.inequality(l, 1 + sum(m.x[l, e, g] for e in m.E), 3 + g),
    ),
    "ranged_tuple": (lambda m: (m.L,), lambda m, l: (0, m.q[l] + m.tau, None)),
    "ranged_pairs": (
        lambda m: (m.L, m.G),
        lambda m, l, g: (None, sum(m.x[l, i, g] + m.x[l, k, g] for i, k in m.PAIRS[l]), 1),
    ),
    "scalar_row": (
        lambda m: (),
        lambda m: sum(m.p[l, s] * m.T[l, s] for l, s in m.OMEGA) + m.tau <= 9,
    ),
    "all_scenarios": (
        lambda m: (m.G,),
        lambda m, g: sum(m.y[l, s, e, g] for l, s in m.OMEGA for e in m.A[l, s]) <= 7,
    ),
    "nested_sums": (
        lambda m: (m.G,),
        lambda m, g: (
            sum(m.w[l, 1] * sum(m.x[l, e, g] for e in m.E) - m.x[l, 0, g] for l in m.L) <= 7
        ),
    ),
    "coefficient_sum": (
        lambda m: (m.OMEGA, m.G),
        lambda m, l, s, g: m.T[l, s] * sum(m.n[l, s, e] for e in m.A[l, s]) <= 1 + m.x[l, 0, g],
    ),
    "bound_sum": (
        lambda m: (m.OMEGA,),
        lambda m, l, s: m.T[l, s] >= sum(m.n[l, s, e] * m.w[l, e] for e in m.A[l, s]),
    ),
    "repeated_column": (
        lambda m: (m.L, m.E),
        lambda m, l, e: m.x[l, e, 0] + m.x[l, e, 0] + sum(m.tau for g in m.G) >= m.tau,
    ),
    "cancelled_column": (
        lambda m: (m.L, m.E),
        lambda m, l, e: m.x[l, e, 0] - m.x[l, e, 0] + m.free[e] >= 1,
    ),
    "zero_coefficient": (
        lambda m: (m.L,),
        lambda m, l: sum(m.kept[e] * m.x[l, e, 0] for e in m.E) <= 4,
    ),
    "param_as_index": (lambda m: (m.L, m.E), lambda m, l, e: m.x[l, m.after[e], 0] <= m.x[l, e, 1]),
    "index_as_coefficient": (
        lambda m: (m.L, m.W),
        lambda m, l, w: sum(e * m.x[l, e, w - 1] for e in m.E) <= l * w,
    ),
    "stepped_range": (
        lambda m: (m.ODD,),
        lambda m, e: sum(m.free[j] for j in m.ODD) + m.free[e - 1] <= e,
    ),
    "constant_index": (lambda m: (m.G,), lambda m, g: m.x[1, 2, g] + m.T[0, 1] <= m.tau),
    "named_expression": (lambda m: (m.L,), lambda m, l: m.total + m.q[l] <= 5),
    "no_row": (lambda m: (m.EMPTY,), lambda m, l, s: m.T[l, s] <= 1),
}


def python_data(m: Any, l: int, e: int) -> Any:
    table = {0: 1.0, 1: 2.0}
    return m.x[l, e, 0] <= table[l]


def skipping(m: Any, l: int, e: int) -> Any:
    return pyo.Constraint.Skip if l == e else m.x[l, e, 0] <= m.free[e]


def member_of_range(m: Any, e: int) -> Any:
    # A trap: a RangeSet says that a placeholder is no member of it.
    return m.free[e] <= 1 if e in m.ODD else m.free[e] <= 2


# Rules that look at their indices or at Python data: they run once a row.
WALKED: dict[str, tuple[Callable[[Any], tuple], Callable[..., Any]]] = {
    "python_data": (lambda m: (m.L, m.E), python_data),
    "skip": (lambda m: (m.L, m.E), skipping),
    "member_of_range": (lambda m: (m.E,), member_of_range),
    "filter": (
        lambda m: (m.L, m.E),
        lambda m, l, e: sum(m.x[l, j, 0] for j in m.E if j != e) <= 2,
    ),
    "quicksum": (lambda m: (m.L,), lambda m, l: pyo.quicksum(m.x[l, e, 0] for e in m.E) <= 1),
    "sum_product": (lambda m: (), lambda m: pyo.sum_product(m.moving, m.free) <= 1),
    "list": (lambda m: (m.L,), lambda m, l: sum([m.x[l, e, 0] for e in m.E]) <= 1),
    "loop": (
        lambda m: (m.L,),
        lambda m, l: sum(m.x[l, e, g] for e in range(2) for g in m.G) <= 1,
    ),
    "maximum": (lambda m: (m.E,), lambda m, e: m.free[e] <= max(e, 2)),
    "modulo": (lambda m: (m.L, m.E), lambda m, l, e: m.x[l, (e + 1) % 5, 0] <= m.x[l, e, 0]),
    "next_member": (
        lambda m: (m.BEFORE[4],),
        lambda m, e: m.free[m.E.next(e)] >= m.free[e],
    ),
}

# Rules that Pyomo templatizes, but the expander leaves to the walk.
UNEXPANDABLE: dict[str, tuple[Callable[[Any], tuple], Callable[..., Any]]] = {
    "names": (lambda m: (m.NAMES, m.E), lambda m, a, e: m.named[a, e] <= m.free[e]),
    "power": (lambda m: (m.E,), lambda m, e: m.free[e] <= m.moving[e] ** 2),
}


def built(form: tuple[Callable[[Any], tuple], Callable[..., Any]]) -> Any:
    sets, rule = form
    with declarative():
        m = base()
        m.row = pyo.Constraint(*sets(m), rule=rule)
        m.cost = pyo.Objective(rule=lambda m: sum(m.p[l, s] * m.T[l, s] for l, s in m.OMEGA) + 2)
    return m


def plain(form: tuple[Callable[[Any], tuple], Callable[..., Any]]) -> Any:
    sets, rule = form
    m = base()
    m.row = pyo.Constraint(*sets(m), rule=rule)
    m.cost = pyo.Objective(rule=lambda m: sum(m.p[l, s] * m.T[l, s] for l, s in m.OMEGA) + 2)
    return m


@pytest.fixture
def no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the expander gave up")

    monkeypatch.setattr(compile_module, "_walked", refuse)
    monkeypatch.setattr(compile_module, "Walk", refuse)


@pytest.mark.parametrize("name", EXPANDED)
def test_expander_equals_stock(name: str, no_walk: None) -> None:
    m = built(EXPANDED[name])
    assert_same_rows(compile_model(m), compile_stock(m))


@pytest.mark.parametrize("name", EXPANDED)
def test_walk_equals_expander(name: str) -> None:
    assert_same_rows(compile_model(plain(EXPANDED[name])), compile_model(built(EXPANDED[name])))


@pytest.mark.parametrize("name", WALKED)
def test_rules_that_cannot_be_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        m = built(WALKED[name])
    assert not caplog.records, "giving up on a template is no error"
    assert template_of(m.row) is None
    assert_same_rows(compile_model(m), compile_stock(m))
    assert_same_rows(compile_model(m), compile_model(plain(WALKED[name])))


@pytest.mark.parametrize("name", UNEXPANDABLE)
def test_templates_left_to_the_walk(name: str) -> None:
    m = built(UNEXPANDABLE[name])
    assert template_of(m.row) is not None
    assert_same_rows(compile_model(m), compile_stock(m))
    assert_same_rows(compile_model(m), compile_model(plain(UNEXPANDABLE[name])))


def test_all_rows_in_one_model() -> None:
    with declarative():
        m = base()
        for name, (sets, rule) in (EXPANDED | WALKED | UNEXPANDABLE).items():
            m.add_component(f"row_{name}", pyo.Constraint(*sets(m), rule=rule))
        m.cost = pyo.Objective(rule=lambda m: m.tau - 3, sense=pyo.maximize)
    compiled = compile_model(m)
    assert compiled.sense == -1
    assert compiled.offset == -3.0
    assert compiled.matrix.has_canonical_format
    assert_same_rows(compiled, compile_stock(m))
    # Compiling twice, and after the oracle has run every rule, changes nothing.
    assert_same_rows(compiled, compile_model(m))


def test_columns() -> None:
    compiled = compile_model(base())
    blocks = compiled.columns
    assert list(blocks) == ["x", "T", "y", "z", "q", "free", "tau", "named"]
    assert blocks["x"].shape == (LAYERS, EXPERTS, GPUS)
    assert blocks["x"].index is None
    assert blocks["tau"].shape == ()
    assert blocks["T"].shape == (5,)
    assert blocks["T"].index == tuple(SCENARIOS)
    assert blocks["z"].index[0] == (0, 1, 0)  # waves start at 1
    assert blocks["y"].index[1] == (0, 0, 0, 1)
    assert blocks["named"].index[0] == ("hot", 0)
    names = member_names(blocks)
    assert names[0] == "x[0,0,0]"
    assert names[1] == "x[0,0,1]"
    assert "y[1,0,4,2]" in names
    at = {name: i for i, name in enumerate(names)}

    def column(name: str) -> tuple[float, float, bool]:
        i = at[name]
        return compiled.lower[i], compiled.upper[i], bool(compiled.integer[i])

    assert column("x[1,4,2]") == (0.0, 1.0, True)
    assert column("T[1,1]") == (0.0, 4.0, True)
    assert column("z[0,2,1]") == (0.0, np.inf, True)
    assert column("q[1]") == (-1.0, 3.0, False)
    assert column("free[3]") == (-np.inf, np.inf, False)
    assert column("tau") == (0.0, np.inf, False)


def test_fixed_columns_keep_their_rows() -> None:
    m = built(EXPANDED["load"])
    free = compile_model(m)
    m.x[1, 3, 2].fix(1)
    m.T[0, 1].setub(2)
    fixed = compile_model(m)
    assert m.x[1, 3, 2].fixed
    i = member_names(fixed.columns).index("x[1,3,2]")
    assert (fixed.lower[i], fixed.upper[i], fixed.integer[i]) == (1.0, 1.0, True)
    assert fixed.upper[member_names(fixed.columns).index("T[0,1]")] == 2.0
    assert (fixed.matrix != free.matrix).nnz == 0
    assert_same_rows(fixed, compile_stock(m))
    m.x[0, 0, 0].fixed = True  # without a value
    with pytest.raises(TypeError, match=r"x\[0,0,0\] is fixed"):
        compile_model(m)


def test_deactivated_rows_are_left_out() -> None:
    m = built(EXPANDED["load"])
    m.row[0, 1, 2].deactivate()
    compiled = compile_model(m)
    assert "row[0,1,2]" not in member_names(compiled.rows)
    assert "row[0,1,1]" in member_names(compiled.rows)
    assert_same_rows(compiled, compile_stock(m))
    m.row.deactivate()
    assert compile_model(m).rows == {}


def test_changed_row_is_compiled_as_changed() -> None:
    m = built(EXPANDED["served"])
    m.row[1].set_value(m.tau <= 1)
    compiled = compile_model(m)
    assert compiled.matrix[[1]].nnz == 1
    assert_same_rows(compiled, compile_stock(m))


def test_infeasible_row_without_variables_stays() -> None:
    with declarative():
        m = base()
        m.row = pyo.Constraint(
            m.OMEGA, rule=lambda m, l, s: sum(m.x[l, e, 0] for e in m.A[l, s]) >= 1
        )
    compiled = compile_model(m)
    assert compiled.matrix.indptr[-1] == compiled.matrix.indptr[-2]  # scenario (1, 1) has no expert
    assert compiled.row_lower[-1] == 1.0


@pytest.mark.parametrize(
    ("rule", "sets"),
    [
        (lambda m, l: m.q[l] * m.tau <= 1, lambda m: (m.L,)),
        (lambda m: m.tau**2 <= 1, lambda m: ()),
        (lambda m, l: 1 / m.q[l] <= 1, lambda m: (m.L,)),
        (lambda m, l: sum(m.x[l, e, 0] * m.x[l, e, 1] for e in m.E) <= 1, lambda m: (m.L,)),
    ],
)
def test_nonlinear_rows_are_refused(rule: Any, sets: Any) -> None:
    m = built((sets, rule))
    with pytest.raises(TypeError, match=r"constraint row.* is not linear"):
        compile_model(m)


def test_nonlinear_objective_is_refused() -> None:
    with declarative():
        m = base()
        m.cost = pyo.Objective(rule=lambda m: m.tau * m.q[0])
    with pytest.raises(TypeError, match="objective cost is not linear"):
        compile_model(m)


def test_other_components_are_refused() -> None:
    m = base()
    m.sos = pyo.SOSConstraint(var=m.q, sos=1)
    with pytest.raises(TypeError, match="sos: a SOSConstraint"):
        compile_model(m)


def test_odd_domain_is_refused() -> None:
    m = pyo.ConcreteModel()
    m.x = pyo.Var(domain=pyo.Set(initialize=[1, 5]))
    with pytest.raises(TypeError, match="is no interval"):
        compile_model(m)


def test_missing_value_is_pyomos_own_error(caplog: pytest.LogCaptureFixture) -> None:
    m = built((lambda m: (m.L, m.E), lambda m, l, e: m.x[l, e, 0] <= m.holes[l, e]))
    with pytest.raises(ValueError, match="holes"):
        compile_model(m)


def test_wrong_index_is_pyomos_own_error() -> None:
    m = built((lambda m: (m.L, m.E), lambda m, l, e: m.x[l, e + 1, 0] <= 1))
    with pytest.raises(KeyError, match="not valid for indexed component 'x'"):
        compile_model(m)


def test_mistake_in_a_rule_is_pyomos_own_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        built((lambda m: (m.L,), lambda m, l: m.nothing[l] <= 1))


def test_switch_is_local() -> None:
    construct = pyo.Constraint.construct
    with declarative():
        assert pyo.Constraint.construct is not construct
    with pytest.raises(ZeroDivisionError), declarative():
        raise ZeroDivisionError
    assert pyo.Constraint.construct is construct


def test_blocks_are_compiled_with_their_names() -> None:
    with declarative():
        m = base()
        m.part = pyo.Block()
        m.part.v = pyo.Var(m.L, dense=False)
        m.part.row = pyo.Constraint(m.L, rule=lambda b, l: b.v[l] <= b.model().q[l])
    compiled = compile_model(m)
    assert "part.v" in compiled.columns
    assert "part.row" in compiled.rows
    assert_same_rows(compiled, compile_stock(m))


def test_objective_given_as_expression_and_constraint_list() -> None:
    with declarative():
        m = base()
        m.cost = pyo.Objective(expr=2 * m.tau + sum(m.free[e] for e in m.E) - 1)
        m.several = pyo.ConstraintList()
        m.several.add(m.tau >= m.q[0])
        m.several.add(m.free[0] + m.free[1] == 2)
    compiled = compile_model(m)
    assert compiled.cost.sum() == 7.0
    assert compiled.offset == -1.0
    assert_same_rows(compiled, compile_stock(m))


def test_two_objectives_are_refused() -> None:
    m = base()
    m.one = pyo.Objective(expr=m.tau)
    m.two = pyo.Objective(expr=-m.tau)
    with pytest.raises(TypeError, match="several objectives: one, two"):
        compile_model(m)
    m.two.deactivate()
    assert compile_model(m).cost.sum() == 1.0


@pytest.mark.parametrize("sets", [{0: [], 1: []}, {0: [], 1: [2, 4]}])
def test_empty_sets_in_a_family_are_expanded(sets: dict[int, list[int]], no_walk: None) -> None:
    # Pyomo does not know the length of the members when the first set is empty.
    with declarative():
        m = base()
        m.SOME = pyo.Set(m.L, initialize=sets)
        m.row = pyo.Constraint(
            m.L, m.G, rule=lambda m, l, g: sum(m.x[l, e, g] for e in m.SOME[l]) <= m.q[l]
        )
        m.cost = pyo.Objective(rule=lambda m: m.tau)
    assert_same_rows(compile_model(m), compile_stock(m))


def test_pairs_after_an_empty_set_are_walked() -> None:
    with declarative():
        m = base()
        m.SOME = pyo.Set(m.L, initialize={0: [], 1: [(2, 1), (4, 0)]})
        m.row = pyo.Constraint(m.L, rule=lambda m, l: sum(m.x[l, p] for p in m.SOME[l]) <= m.q[l])
    assert_same_rows(compile_model(m), compile_stock(m))
