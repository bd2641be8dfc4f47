"""The command ``balance``: files in, a table and a plan out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moeopt.balance import balance_data, check_balance
from moeopt.commands.balancing import balance
from moeopt.errors import InputError

WEIGHT = np.random.default_rng(0).lognormal(0, 1, (2, 12))


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(balance)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_plan_is_written(tmp_path: Path, suffix: str) -> None:
    np.savetxt(tmp_path / "loads.csv", WEIGHT, delimiter=",")
    np.save(tmp_path / "loads.npy", WEIGHT)
    path = tmp_path / f"plan{suffix}"
    shape = ("--gpus", "4", "--slots", "16")
    for loads in ("loads.csv", "loads.npy"):
        printed = run(str(tmp_path / loads), *shape, "-o", str(path), "--force")
        assert "balancedness 0.9" in printed
        assert "largest certified gap" in printed
        if suffix == ".npy":
            plan = np.load(path)
        else:
            plan = np.array(json.loads(path.read_text())["physical_to_logical_map"])
        data = balance_data(WEIGHT, gpus=4, replicas=16)
        assert check_balance(data, plan).violations == []
    printed = run(str(tmp_path / "loads.npy"), *shape, "--previous", str(path), "--max-moves", "0")
    assert "0 copies moved" in printed
    with pytest.raises(InputError, match="--force overwrites"):
        run(str(tmp_path / "loads.npy"), *shape, "-o", str(path))
    with pytest.raises(InputError, match="there is no folder"):
        run(str(tmp_path / "loads.npy"), *shape, "-o", str(tmp_path / "none" / path.name))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("loads.txt", "1,2", "read from .npy or .csv"),
        ("loads.csv", "# loads\n1,2\n1,two", "loads.csv: line 3, column 2: 'two' is not a number"),
        ("loads.csv", "1,2\n3", "line 2: 1 value, the lines before have 2"),
        ("loads.csv", "", "there are no loads in it"),
        ("missing.csv", None, "missing.csv"),
        ("broken.npy", "no array", "broken.npy"),
    ],
)
def test_files_that_are_no_loads(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        run(str(tmp_path / name), "--gpus", "2", "--slots", "2")
    assert words in str(caught.value)


@pytest.mark.parametrize("content", ["[[0, 1]]", "{}", '{"physical_to_logical_map": "x"}', "{"])
def test_plans_that_are_none(tmp_path: Path, content: str) -> None:
    np.save(tmp_path / "loads.npy", WEIGHT)
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match="physical_to_logical_map is needed"):
        run(
            str(tmp_path / "loads.npy"),
            "--gpus",
            "4",
            "--slots",
            "16",
            "--previous",
            str(tmp_path / "plan.json"),
        )


def test_output_is_known_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.npy or \.json"):
        run("none.npy", "--gpus", "4", "--slots", "16", "-o", str(tmp_path / "plan.txt"))
