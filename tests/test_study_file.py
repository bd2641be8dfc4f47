"""Study files: read strictly, expanded into cells whose keys know everything that matters."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from study_cases import ROOT, SMOKE, write_study

from moeopt.errors import InputError
from moeopt.study import forker, index, keys
from moeopt.study.plan import GRACE_S, GRACE_SHARE, Plan, plan_study
from moeopt.study.slot import TRIES
from moeopt.study.study_file import (
    SUITES,
    Block,
    Defaults,
    Head,
    StudyFile,
    read_study,
    study_path,
)

HEAD = '[study]\nname = "s"\n'
PAIRS = SMOKE / "smoke_replication_pairs.json"


def planned(folder: Path, text: str) -> Plan:
    path = write_study(folder, HEAD + text)
    return plan_study(read_study(path), path)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        planned(folder, text)
    path = str(folder / "study.toml")
    assert all(line.startswith(f"{path}: ") for line in caught.value.problems)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_cross_product_in_the_order_of_the_file(tmp_path):
    plan = planned(
        tmp_path,
        """
        [defaults]
        time_limit_s = 7
        seeds = [3, 4]
        [[cells]]
        instances = ["smoke_placement_unit"]
        problem = "placement"
        formulations = ["default", "placement_assignment"]
        solvers = ["highs", "cpsat"]
        settings = { gap = 0.01, options = { presolve = "on" } }
        """,
    )
    told = [(c.cell.formulation, c.cell.solver, c.cell.seed) for c in plan.cells]
    assert told == [
        *((None, None, seed) for seed in (3, 4)),
        *(("placement_assignment", s, seed) for s in ("highs", "cpsat") for seed in (3, 4)),
    ]
    assert plan.cells[0].cell.settings == {
        "time_limit_s": 7.0,
        "memory_limit_mib": None,
        "gap": 0.01,
        "threads": None,
        "start": "default",
        "options": {"presolve": "on"},
        "measure": [],
    }
    assert len({c.cell.key for c in plan.cells}) == 6


def test_patterns_match_shipped_instances_and_files_beside_the_study(tmp_path):
    document = json.loads(PAIRS.read_text())
    document["name"] = "mine"
    (tmp_path / "mine.json").write_text(json.dumps(document))
    block = '[[cells]]\nproblem = "replication"\ninstances = '
    assert [c.cell.instance for c in planned(tmp_path, block + '["*.json"]').cells] == ["mine"]
    assert [c.cell.instance for c in planned(tmp_path, block + '["mine.json"]').cells] == ["mine"]
    absolute = json.dumps(str(tmp_path / "*.json"))
    assert [c.cell.instance for c in planned(tmp_path, f"{block}[{absolute}]").cells] == ["mine"]
    shipped = planned(tmp_path, block + '["smoke_replication_[mp]*"]')
    assert {c.cell.instance for c in shipped.cells} == {
        f"smoke_replication_{name}" for name in ("max", "memory", "p2", "pairs")
    }


def test_what_is_not_supported_is_listed_with_the_reason(tmp_path):
    plan = planned(
        tmp_path,
        """
        [[cells]]
        instances = ["smoke_placement_unit", "smoke_placement_memory"]
        problem = "placement"
        formulations = ["placement_patterns", "placement_cp"]
        solvers = ["highs"]
        [[cells]]
        instances = ["smoke_placement_unit"]
        problem = "joint"
        """,
    )
    assert [c.cell.formulation for c in plan.cells] == ["placement_patterns"]
    reasons = {(cell.instance, cell.formulation): reason for cell, reason in plan.skipped}
    assert "slots" in reasons["smoke_placement_memory", "placement_patterns"]
    assert "only cpsat" in reasons["smoke_placement_unit", "placement_cp"]
    assert "requests" in reasons["smoke_placement_unit", None]
    assert len(reasons) == 4


def test_a_cell_that_two_blocks_name_is_one_cell(tmp_path):
    block = '[[cells]]\nproblem = "replication"\ninstances = ["smoke_replication_pairs"]\n'
    assert len(planned(tmp_path, block + block).cells) == 1
    assert len(planned(tmp_path, block + block + "settings = { gap = 0.1 }\n").cells) == 2


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["cells: missing"]),
        ("[[cells]]\nproblem = 'placement'\n", ["cells[0].instances: missing"]),
        (
            "[[cells]]\nproblem = 'placment'\ninstances = ['x']\n",
            ["cells[0].problem: there is no problem 'placment'"],
        ),
        (
            "[defaults]\ntime_limit = 3\n[[cells]]\nproblem = 'placement'\ninstances = [1]\n"
            "seeds = ['a']\n",
            [
                "defaults.time_limit: unknown key (did you mean time_limit_s?)",
                "cells[0].instances[0]: must be a text",
                "cells[0].seeds[0]: must be a whole number",
            ],
        ),
        (
            "[[cells]]\nproblem = 'placement'\ninstances = ['smoke_placement_unit']\n"
            "settings = { time_limit_s = 0, gap = 1.5, start = 'warm', measure = ['all'] }\n",
            [
                "cells[0].settings.time_limit_s: must be greater than 0",
                "cells[0].settings.gap: ",
                "cells[0].settings.start: must be 'default', 'heuristic' or 'none'",
                "cells[0].settings.measure[0]: must be 'lp' or 'root'",
            ],
        ),
        (
            "[[cells]]\nproblem = 'placement'\n"
            "instances = ['smoke_placement_uni', 'dbrx_99*', 'no/such.json']\n"
            "formulations = ['default', 'placement_assignmen', 'joint_work', 'mine.py']\n"
            "solvers = ['gurobi']\n",
            [
                "cells[0].instances[0]: smoke_placement_uni: neither a file nor a shipped "
                "instance; did you mean smoke_placement_unit",
                "cells[0].instances[1]: no instance matches 'dbrx_99*'",
                "cells[0].instances[2]: no/such.json: no such file",
                "cells[0].formulations[1]: there is no formulation 'placement_assignmen'; did you",
                "cells[0].formulations[2]: formulation joint_work is for joint, not for placement",
                "cells[0].formulations[3]: formulation ",
                "cells[0].solvers[0]: there is no solver 'gurobi'; solvers are highs, cpsat",
            ],
        ),
    ],
)
def test_all_problems_are_listed_with_their_place(tmp_path, text, lines):
    found = problems(tmp_path, text)
    assert len(found) == len(lines), found
    for line in lines:
        assert any(one.startswith(line) for one in found), (line, found)


def test_an_instance_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cut.json").write_text(PAIRS.read_text()[:50])
    lines = problems(tmp_path, "[[cells]]\nproblem = 'placement'\ninstances = ['cut.json']\n")
    assert len(lines) == 1
    assert lines[0].startswith("cells[0].instances[0]: cut.json: ")


def test_two_instances_of_one_name_are_refused(tmp_path):
    for name in ("a.json", "b.json"):
        shutil.copy(PAIRS, tmp_path / name)
    block = '[[cells]]\nproblem = "replication"\ninstances = ["*.json"]\n'
    assert "both called 'smoke_replication_pairs'" in problems(tmp_path, block)[0]


def test_no_toml_and_no_file(tmp_path):
    path = write_study(tmp_path, "[study\n")
    with pytest.raises(InputError, match=r"not TOML: .*line 1"):
        read_study(path)
    with pytest.raises(InputError, match="did you mean smoke"):
        study_path("smok")
    with pytest.raises(InputError, match="no such file"):
        study_path("no/such.toml")


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_suites_are_named_like_their_files_and_name_only_what_there_is(path):
    study = read_study(path)
    assert study.study.name == path.stem
    assert study.study.title
    assert study_path(path.stem) == path
    plan = plan_study(study, path)
    assert plan.cells


def test_key_knows_everything_that_decides_the_result(monkeypatch):
    settings = {"time_limit_s": 1.0}
    arguments = {
        "instance_sha256": "a",
        "problem": "placement",
        "formulation": "placement_assignment",
        "solver": "highs",
        "settings": settings,
        "seed": 0,
    }
    key = keys.cell_key(**arguments)
    others = [
        arguments | {"instance_sha256": "b"},
        arguments | {"problem": "replication"},
        arguments | {"formulation": "placement_pairs"},
        arguments | {"solver": "cpsat"},
        arguments | {"settings": {"time_limit_s": 2.0}},
        arguments | {"seed": 1},
    ]
    assert keys.cell_key(**arguments) == key
    assert len({key[:32], *(keys.cell_key(**other)[:32] for other in others)}) == 7
    for name, value in (("__version__", "9"), ("version", lambda distribution: "9")):
        with monkeypatch.context() as patch:
            patch.setattr(keys, name, value)
            keys.versions_hash.cache_clear()
            changed = keys.cell_key(**arguments)
        assert changed[:32] == key[:32]
        assert changed[32:] != key[32:]
    keys.versions_hash.cache_clear()


def test_key_changes_with_a_formulation_and_what_it_imports(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from pathlib import Path\nPROBLEM = 'placement'\nKIND = 'exact'\n"
        "def supports(data):\n    return None\ndef build_cpsat(data):\n    import helper\n"
    )
    (tmp_path / "helper.py").write_text("a = 1\n")
    first = keys.formulation_sha256(str(mine))
    (tmp_path / "helper.py").write_text("a = 2\n")
    second = keys.formulation_sha256(str(mine))
    mine.write_text(mine.read_text() + "# changed\n")
    assert len({first, second, keys.formulation_sha256(str(mine))}) == 3
    parts = {path.name for path in keys._sources(keys._file(keys.load_formulation("joint_work")))}
    assert {"joint_work.py", "_parts.py"} <= parts


PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_is_a_study(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = write_study(tmp_path, example)
    plan = plan_study(read_study(path), path)
    assert len(plan.cells) > 5
    assert plan.skipped


def test_every_key_is_described():
    parts = (Head, Defaults, Block, StudyFile)
    known = {name for part in parts for name in part.model_fields}
    assert [name for name in sorted(known) if f"`{name}`" not in PAGE] == []


def test_every_column_of_the_index_is_described():
    assert [name for name in index._COLUMNS if f"`{name}`" not in PAGE] == []


def test_limits_are_as_described():
    share, grace = f"{GRACE_SHARE * 100:.0f} %", f"{GRACE_S:.0f} s"
    assert f"{share} and {grace}" in PAGE
    assert f"{forker.LIBRARY_MIB:.0f} MiB" in PAGE
    assert f"{TRIES} times" in PAGE


def test_time_bound(tmp_path):
    plan = planned(
        tmp_path,
        "[[cells]]\nproblem = 'replication'\ninstances = ['smoke_replication_pairs']\n"
        "formulations = ['replication_matching']\nseeds = [1, 2, 3]\n"
        "settings = { time_limit_s = 10, measure = ['lp', 'root', 'lp'] }\n",
    )
    each = 3 * 10 * (1 + GRACE_SHARE) + GRACE_S
    assert [c.hard_limit_s for c in plan.cells] == pytest.approx([each] * 3)
    assert plan.time_bound_s(plan.cells, 1) == pytest.approx(3 * each)
    assert plan.time_bound_s(plan.cells, 2) == pytest.approx(2 * each)
    longer = replace(plan.cells[0])
    assert plan.time_bound_s([longer], 4) == pytest.approx(each)
