"""The commands as a user runs them: output, JSON, exit status, clear lines for errors."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moeopt.cli import COMMANDS, COMPILED, run
from moeopt.kernel_notice import COMPILING, tells_of_compiling

HERE = Path(__file__).parent
SMOKE = HERE.parent / "instances" / "smoke"
PAIRS = "smoke_replication_pairs"


def moeopt(*arguments, cwd=None):
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "moeopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_lines(done):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines, done.stderr
    return lines


def test_solve_prints_status_bounds_and_gap():
    done = moeopt("solve", PAIRS, "--problem", "replication")
    assert done.returncode == 0
    for words in ("proved optimal", "upper bound", "lower bound", "1.1 expert-time units", "gap"):
        assert words in done.stdout
    assert "incumbent" in done.stderr


def test_solve_json_is_one_document_and_writes_the_plan(tmp_path):
    plan = tmp_path / "plan.json"
    done = moeopt("solve", PAIRS, "-p", "replication", "--json", "-o", plan)
    record = json.loads(done.stdout)
    assert record["schema"] == "moeopt-record/1"
    assert record["status"] == "optimal"
    assert json.loads(plan.read_text())["schema"] == "moeopt-solution/1"
    checked = moeopt("check", PAIRS, plan, "--json")
    assert checked.returncode == 0
    report = json.loads(checked.stdout)
    assert report["violations"] == []
    assert report["objective"] == pytest.approx(record["upper_bound"], rel=1e-12)


def test_nothing_is_overwritten(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text("mine")
    done = moeopt("solve", PAIRS, "-p", "replication", "-o", plan)
    assert "exists; --force overwrites it" in error_lines(done)[0]
    assert plan.read_text() == "mine"
    done = moeopt("mps", PAIRS, "-p", "replication", "-f", "replication_matching", "-o", plan)
    assert "exists" in error_lines(done)[0]
    assert plan.read_text() == "mine"
    assert moeopt("solve", PAIRS, "-p", "replication", "-o", plan, "--force").returncode == 0
    assert plan.read_text() != "mine"


def test_infeasible_explains_and_exits_with_1():
    done = moeopt("solve", "smoke_replication_infeasible", "-p", "replication")
    assert done.returncode == 1
    assert "100 MiB are missing" in done.stdout


def test_check_lists_violations_and_exits_with_1(tmp_path):
    plan = tmp_path / "plan.json"
    moeopt("solve", PAIRS, "-p", "replication", "-o", plan)
    document = json.loads(plan.read_text())
    document["hosts"][0][0] = []
    plan.write_text(json.dumps(document))
    done = moeopt("check", PAIRS, plan)
    assert done.returncode == 1
    assert "expert_not_hosted" in done.stdout
    report = json.loads(moeopt("check", PAIRS, plan, "--json").stdout)
    assert [violation["kind"] for violation in report["violations"]] == ["expert_not_hosted"]


def test_check_validates_an_instance():
    assert "valid" in moeopt("check", PAIRS).stdout


def test_bound_names_every_proof():
    done = moeopt("bound", PAIRS, "-p", "replication", "--json")
    assert done.returncode == 0
    bounds = json.loads(done.stdout)["bounds"]
    assert {b["method"] for b in bounds} >= {"scenario", "lp replication_matching"}
    assert all(b["proof"] and b["value"] <= 1.1 for b in bounds)
    values = [b["value"] for b in bounds]
    assert values == sorted(values, reverse=True)
    only = json.loads(
        moeopt("bound", PAIRS, "-p", "replication", "-m", "combinatorial", "--json").stdout
    )
    assert all(not b["method"].startswith("lp ") for b in only["bounds"])


def test_mps_is_written(tmp_path):
    path = tmp_path / "model.mps"
    done = moeopt("mps", PAIRS, "-p", "replication", "-f", "replication_matching", "-o", path)
    assert done.returncode == 0
    assert path.read_text().splitlines()[-1] == "ENDATA"


@pytest.mark.parametrize("what", ["problems", "formulations", "solvers", "instances"])
def test_lists(what):
    rows = json.loads(moeopt("list", what, "--json").stdout)
    assert len(rows) >= 2
    text = moeopt("list", what).stdout
    assert str(next(iter(rows[0].values()))) in text


def test_show_tells_memory_and_problems():
    text = moeopt("show", "mixtral-8x7b_4gpu_azure").stdout
    for words in ("32 × 8, top-2", "86,016 MiB", "600", "joint", "placement"):
        assert words in text
    assert "joint" in json.loads(moeopt("show", PAIRS, "--json").stdout)["problems"]


def test_versions_include_a_self_check():
    rows = json.loads(moeopt("versions", "--json").stdout)
    checks = {row["component"]: row["self_check"] for row in rows}
    assert checks["highs (highspy)"] == "passed"
    assert checks["cpsat (ortools)"] == "passed"


def test_own_instance_file_zipped(tmp_path):
    path = tmp_path / "mine.json.gz"
    path.write_bytes(gzip.compress((SMOKE / f"{PAIRS}.json").read_bytes()))
    assert moeopt("check", path).returncode == 0


def _changed(tmp_path, change):
    document = json.loads((SMOKE / f"{PAIRS}.json").read_text())
    change(document)
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(document))
    return path


def test_bad_input_truncated(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text((SMOKE / f"{PAIRS}.json").read_text()[:100])
    assert len(error_lines(moeopt("check", path))) == 1


def _wrong_types(document):
    document["moe"]["layers"] = "one"
    document["moe"]["expert_mib"] = [1]


def _negative_sizes(document):
    document["moe"]["expert_mib"] = -1.0


def _zero_weights(document):
    scenarios = document["routing"][0]["scenarios"]
    scenarios["weight"] = [0.0] * len(scenarios["weight"])


def _expert_out_of_range(document):
    document["routing"][0]["scenarios"]["experts"][0][0] = 99


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        (_wrong_types, ["moe.layers", "moe.expert_mib"]),
        (_negative_sizes, ["moe.expert_mib"]),
        (_zero_weights, ["routing[0].scenarios.weight"]),
        (_expert_out_of_range, ["routing[0].scenarios.experts[0][0]"]),
    ],
)
def test_bad_input_has_a_line_for_each_problem(tmp_path, change, paths):
    lines = error_lines(moeopt("solve", _changed(tmp_path, change), "-p", "replication"))
    assert len(lines) == len(paths)
    for line, path in zip(sorted(lines), sorted(paths), strict=True):
        assert f"{path}: " in line


def test_bad_input_npz_with_the_wrong_hash(tmp_path):
    real = HERE.parent / "instances" / "real"
    document = json.loads((real / "mixtral-8x7b_4gpu_azure.json").read_text())
    (tmp_path / document["arrays"]).write_bytes((real / document["arrays"]).read_bytes()[:-1])
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(document))
    lines = error_lines(moeopt("check", path))
    assert len(lines) == 1
    assert "arrays_sha256" in lines[0]


def test_bad_input_a_plan_for_another_instance(tmp_path):
    plan = tmp_path / "plan.json"
    moeopt("solve", PAIRS, "-p", "replication", "-o", plan)
    lines = error_lines(moeopt("check", "smoke_replication_sum", plan))
    assert len(lines) == 1  # not that its shapes differ as well
    assert "another instance" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "smoke_replication_pair", "-p", "replication"], "did you mean"),
        (["solve", "no/such/file.json", "-p", "replication"], "no such file"),
        (["solve", PAIRS, "-p", "replications"], "no problem 'replications'"),
        (["solve", PAIRS, "-p", "joint"], "requests"),
        (["solve", PAIRS, "-p", "replication", "--option", "x"], "write NAME=VALUE"),
        (["bound", PAIRS, "-p", "replication", "-m", "magic"], "no method 'magic'"),
        (["list", "things"], "cannot list 'things'"),
        (["mps", PAIRS, "-p", "replication", "-f", "replication_cp", "-o", "x.mps"], "no rows"),
        (["instance", "make", "mixtral-8x7b", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_one_clear_line(tmp_path, arguments, words):
    lines = error_lines(moeopt(*arguments, cwd=tmp_path))
    assert any(words in line for line in lines), lines


def test_misspelt_options_exit_with_2():
    done = moeopt("solve", PAIRS, "--problm", "replication")
    assert done.returncode == 2
    assert "--problm" in done.stderr


def test_instance_make_rebuilds_the_shipped_files(tmp_path):
    done = moeopt("instance", "make", "dbrx", "-o", tmp_path)
    assert done.returncode == 0
    made = sorted(tmp_path.glob("*.json"))
    assert made
    for path in made:
        assert path.read_bytes() == (HERE.parent / "instances" / "real" / path.name).read_bytes()
    again = moeopt("instance", "make", "dbrx", "-o", tmp_path)
    assert again.returncode == 0  # the same content: nothing is lost


def test_compiling_is_told_once_and_only_where_it_happens(capsys):
    import numba

    @tells_of_compiling
    def command(add):
        print(add(1, 2), add(1.0, 2.0))

    @numba.njit
    def add(a, b):
        return a + b

    command(add)
    assert capsys.readouterr().err == f"{COMPILING}\n"
    command(add)  # compiled by now
    assert capsys.readouterr().err == ""
    add(1j, 2j)  # outside of the command
    assert capsys.readouterr().err == ""
    assert set(COMPILED) <= set(COMMANDS)


def test_an_interrupted_kernel_is_one_line(capsys):
    def kernel():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    def defect():
        raise SystemError("something else")

    assert run(kernel) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(SystemError, match="something else"):
        run(defect)
