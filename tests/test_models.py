"""LP values of every formulation are pinned, and stand in the declared order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from solve_jobs import solve_jobs

from moeopt.catalog import (
    KINDS,
    formulation_names,
    is_native,
    load_formulation,
    read_instance,
)
from moeopt.compile import compile_model, compile_stock
from moeopt.declarative import declarative
from moeopt.prepare import explain_infeasible, prepare

HERE = Path(__file__).parent
SMOKE = HERE.parent / "instances" / "smoke"
PINNED = HERE / "pinned_lp.json"


def smoke_data():
    for path in sorted(SMOKE.glob("*.json")):
        data = prepare(read_instance(path), path.stem.split("_")[1])
        if not explain_infeasible(data):
            yield path.stem, data


DATA = dict(smoke_data())
PAIRS = [
    (name, formulation)
    for name, data in DATA.items()
    for formulation in formulation_names(data.problem)
    if not is_native(load_formulation(formulation))
    and load_formulation(formulation).supports(data) is None
]


@pytest.fixture(scope="module")
def lp_values(tmp_path_factory):
    jobs = [("highs", DATA[name], formulation, True) for name, formulation in PAIRS]
    answers = solve_jobs(tmp_path_factory.mktemp("lp"), jobs)
    return {pair: answer[2] for pair, answer in zip(PAIRS, answers, strict=True)}


def test_lp_values_are_pinned(lp_values):
    """To renew after a change of a formulation: ``python tests/test_models.py``."""
    pinned = json.loads(PINNED.read_text())
    values = {}
    for (name, formulation), value in lp_values.items():
        values.setdefault(name, {})[formulation] = value
    assert {n: set(v) for n, v in values.items()} == {n: set(v) for n, v in pinned.items()}
    for name, row in pinned.items():
        for formulation, value in row.items():
            assert values[name][formulation] == pytest.approx(value, rel=1e-8), (name, formulation)


def test_tighter_formulations_have_higher_lp_values(lp_values):
    compared = 0
    for (name, formulation), value in lp_values.items():
        for weaker in load_formulation(formulation).TIGHTER_THAN:
            other = lp_values.get((name, weaker))
            if other is not None:
                compared += 1
                assert value >= other - 1e-7 * max(1.0, abs(other)), (name, formulation, weaker)
    assert compared >= 10


@pytest.mark.parametrize("name", formulation_names())
def test_formulations_keep_the_contract(name):
    module = load_formulation(name)
    assert module.KIND in KINDS
    assert set(module.TIGHTER_THAN) <= set(formulation_names(module.PROBLEM))
    assert module.__doc__
    assert callable(module.size)


@pytest.mark.parametrize(("name", "formulation"), PAIRS)
def test_the_expander_gives_the_rows_of_pyomo(name, formulation):
    from compare_linear import assert_same_rows

    module = load_formulation(formulation)
    with declarative():
        model = module.build(DATA[name])
    assert_same_rows(compile_model(model), compile_stock(module.build(DATA[name])))


@pytest.mark.parametrize(("name", "formulation"), PAIRS)
def test_rules_are_expanded_not_walked(name, formulation, monkeypatch):
    """A rule that does not templatize would be right, but slow on real instances."""
    from moeopt import compile as compiler

    walk = compiler._walked

    def refuse(constraint, layout):
        assert not len(constraint), f"{formulation}: {constraint.name} is walked row by row"
        return walk(constraint, layout)  # no rows at all: nothing to expand

    monkeypatch.setattr(compiler, "_walked", refuse)
    with declarative():
        model = load_formulation(formulation).build(DATA[name])
    compile_model(model)


def _renew():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        jobs = [("highs", DATA[name], formulation, True) for name, formulation in PAIRS]
        answers = solve_jobs(Path(folder), jobs)
    values: dict[str, dict[str, float]] = {}
    for (name, formulation), answer in zip(PAIRS, answers, strict=True):
        values.setdefault(name, {})[formulation] = answer[2]
    PINNED.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    _renew()
