"""The smoke instances: what their notes say is what brute force finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from brute import brute_optimum

from moeopt.feasibility import explain_infeasible
from moeopt.instance import read_instance_file
from moeopt.prepare import prepare
from moeopt.problem import PROBLEMS

SMOKE = sorted((Path(__file__).parent.parent / "instances" / "smoke").glob("*.json"))


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_notes_state_the_optimum(path: Path) -> None:
    instance = read_instance_file(path)
    assert instance.name == path.stem
    assert instance.source is not None
    data = prepare(instance, path.stem.split("_")[1])
    value, _ = brute_optimum(data)
    notes = instance.source.notes or ""
    if path.stem.endswith("infeasible"):
        assert value == float("inf")
        assert explain_infeasible(data)
        return
    assert explain_infeasible(data) == []
    stated = re.findall(r"Optimum[^0-9]*(?:[\d./]+ [-+] [\d./]+ = )?(\d+\.\d+)", notes)
    assert value == pytest.approx(float(stated[-1]), rel=1e-12)


def test_all_kinds_are_there() -> None:
    assert {path.stem.split("_")[1] for path in SMOKE} == set(PROBLEMS)
    forms = {read_instance_file(path).layer_time.form for path in SMOKE}
    assert forms == {"unit", "sum", "max", "p2"}
