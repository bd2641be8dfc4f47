"""The pages of the formulations: equations, components, sizes, LP values."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyomo.environ as pyo
import pytest
from docs_pages import DOCS, smoke_data, text_of
from make_data import random_data
from scipy.optimize import Bounds, LinearConstraint, milp

from moeopt.catalog import formulation_names, is_native, load_formulation
from moeopt.choosing import Choice
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.linear import LinearModel
from moeopt.problem import ProblemData

NAMES = formulation_names()
PYOMO_NAMES = [name for name in NAMES if not is_native(load_formulation(name))]


def page_of(formulation: str) -> str:
    return text_of(f"formulations/{formulation}.md")


@functools.cache
def sample_data(problem: str) -> tuple[ProblemData, ...]:
    """Smoke instances, and a scenario of five experts, for which some formulations have rows."""
    if problem != "placement":
        return smoke_data(problem)
    rng = np.random.default_rng(0)
    five = random_data("placement", rng, experts=6, gpus=3, top_k=5, scenarios=3, spare=0)
    return (*smoke_data(problem), replace(five, name="five_of_six"))


@functools.cache
def built(name: str, instance: str) -> tuple[pyo.ConcreteModel, LinearModel]:
    formulation = load_formulation(name)
    data = next(d for d in sample_data(formulation.PROBLEM) if d.name == instance)
    with declarative():
        model = formulation.build(data)
    return model, compile_model(model)


def taken(formulation: ModuleType) -> list[ProblemData]:
    return [d for d in sample_data(formulation.PROBLEM) if formulation.supports(d) is None]


def test_every_formulation_has_a_page_and_vice_versa() -> None:
    pages = {page.stem for page in (DOCS / "formulations").glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    overview = text_of("formulations/README.md")
    assert [n for n in NAMES if f"[{n}]({n}.md)" not in overview] == []


def numbers(text: str) -> set[str]:
    """Numbers of equations in a text, like N3; (N1)-(N3) is three of them."""
    found = set()
    for letter, first, last in re.findall(r"\(([A-Z])(\d+)\)(?:[-–]\(\1(\d+)\))?", text):
        found |= {f"{letter}{i}" for i in range(int(first), int(last or first) + 1)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_equation_is_on_the_page(name: str) -> None:
    source = Path(load_formulation(name).__file__ or "").read_text(encoding="utf-8")
    number = r"\([A-Z]\d+\)"
    stated = re.search(rf"Equations ({number}[^:]*): docs/([\w/]+\.md)", source)
    assert stated, "the docstring names the equations and their page"
    equations, page = numbers(stated[1]), stated[2]
    assert page == f"formulations/{name}.md"
    letters = {equation[0] for equation in equations}
    assert {e for e in numbers(page_of(name)) if e[0] in letters} == equations
    comments = numbers("\n".join(re.findall(r"#.*", source)))
    assert comments, "comments carry the numbers"
    assert comments <= equations


def numbered(page: str) -> set[str]:
    """Names of rows that a page gives a number: in blocks of equations, or (A1) `name` in prose."""
    in_prose = set(re.findall(r"\([A-Z]\d+\)\s`(\w+)`", page))
    # A number, or as much room, then the names.
    label = r"(?m)^(?:\([A-Z]\d+\)\s{2,}| {6})([a-z]\w*(?:, [a-z]\w*)*)"
    blocks = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    in_blocks = {
        name for b in blocks for names in re.findall(label, b) for name in names.split(", ")
    }
    return in_prose | in_blocks


@pytest.mark.parametrize("name", PYOMO_NAMES)
def test_every_component_is_on_the_page(name: str) -> None:
    formulation = load_formulation(name)
    rows, columns = set(), set()
    for data in taken(formulation):
        model, _ = built(name, data.name)
        columns |= {c.name for c in model.component_objects(pyo.Var)}
        for kind in (pyo.Constraint, pyo.Objective):
            rows |= {c.name for c in model.component_objects(kind)}
    text = page_of(name)
    assert [c for c in sorted(columns) if f"`{c}`" not in text] == []
    equations = numbered(text)
    # slots_row and joint_compact's (J5) exist only where an instance has slots.
    assert rows - equations == set()
    assert equations - rows <= {"slots_row"}


@pytest.mark.parametrize("name", NAMES)
def test_size_example(name: str) -> None:
    formulation = load_formulation(name)
    found = re.findall(
        r"Example, `(\w+)`: rows (\d+), columns (\d+), nonzeros (\d+), integers (\d+)\.",
        page_of(name),
    )
    assert found
    for instance, *numbers in found:
        data = next(d for d in smoke_data(formulation.PROBLEM) if d.name == instance)
        keys = ("rows", "columns", "nonzeros", "integers")
        assert formulation.size(data) == dict(zip(keys, map(int, numbers), strict=True))


@pytest.mark.parametrize("name", PYOMO_NAMES)
def test_size_is_the_compiled_size(name: str) -> None:
    formulation = load_formulation(name)
    data_sets = taken(formulation)
    assert len(data_sets) >= 4
    for data in data_sets:
        assert formulation.size(data) == built(name, data.name)[1].size, data.name


def lp_rows() -> list[tuple[str, str, float, float]]:
    row = r"^\| (\w+) \| (smoke_\w+) \| ([\d.]+) \| ([\d.]+) \|$"
    found = re.findall(row, text_of("formulations/README.md"), re.MULTILINE)
    return [(name, instance, float(lp), float(best)) for name, instance, lp, best in found]


def test_every_pyomo_formulation_has_an_lp_value() -> None:
    assert {name for name, *_ in lp_rows()} == set(PYOMO_NAMES)


@pytest.mark.parametrize(("name", "instance", "lp", "optimum"), lp_rows())
def test_lp_values(name: str, instance: str, lp: float, optimum: float) -> None:
    assert solved(name, instance, relax=True) == pytest.approx(lp, rel=1e-6, abs=1e-6)
    assert solved(name, instance, relax=False) == pytest.approx(optimum, rel=1e-6)


def solved(name: str, instance: str, *, relax: bool) -> float:
    # scipy's own HiGHS: no solver of ours is loaded here.
    _, linear = built(name, instance)
    result = milp(
        linear.cost,
        constraints=LinearConstraint(linear.matrix, linear.row_lower, linear.row_upper),
        bounds=Bounds(linear.lower, linear.upper),
        integrality=np.zeros(len(linear.cost)) if relax else linear.integer.astype(int),
    )
    assert result.success, result.message
    return float(result.fun) + linear.offset


def test_p2_is_a_relaxation_everywhere() -> None:
    # The overview says so for all formulations, and which of them are exact for the other forms.
    but = re.search(
        r"^All but (`.*`) are exact for", text_of("formulations/README.md"), re.MULTILINE
    )
    assert but
    relaxations = set(re.findall(r"`(\w+)`", but[1]))
    takes_p2 = set()
    # These formulations do not look at the layer time.
    untimed = ("balance", "topology", "paging", "affinity")
    timed = [name for name in NAMES if load_formulation(name).PROBLEM not in untimed]
    for name in timed:
        formulation = load_formulation(name)
        assert (formulation.KIND == "relaxation") == (name in relaxations)
        for data in taken(formulation):
            kind = Choice(name, formulation, "").kind(data)
            if data.layer_time.form == "p2":
                takes_p2.add(name)
                assert kind == "relaxation"
            else:
                # Where groups have at most two members, pairs are transitive.
                small = name in relaxations and data.slots == 2
                assert kind == ("exact" if small else formulation.KIND), (name, data.name)
    only_unit = re.search(
        r"^(`.*`) take `unit` only", text_of("formulations/README.md"), re.MULTILINE
    )
    assert only_unit
    assert takes_p2 == set(timed) - set(re.findall(r"`(\w+)`", only_unit[1]))
