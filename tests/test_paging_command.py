"""The command ``paging``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from moeopt.cli import app, run
from moeopt.errors import InputError


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Four short sequences of three layers of five experts, top-2."""
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(5), (60, 3, 1)), axis=2)
    path = tmp_path / "choices.npz"
    offsets = np.array([0, 10, 30, 45, 60])
    np.savez(path, ids=order[:, :, :2].astype(np.uint8), offsets=offsets, experts=5)
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["paging", *arguments], catch_exceptions=True)


def test_a_trace_over_all_sizes(trace: str, tmp_path: Path) -> None:
    plot = tmp_path / "misses.svg"
    done = invoke(trace, "--policy", "all", "--load-us", "500", "--plot", str(plot))
    assert done.exit_code == 0, done.output
    assert "180 requests for 360 experts, at most 2 at once, of 15 in all" in done.output
    assert "misses / offline optimum" in done.output
    assert "marking" in done.output
    assert "llru" in plot.read_text()
    again = invoke(trace, "--plot", str(plot))
    assert isinstance(again.exception, InputError)
    assert "--force" in str(again.exception)


def test_json_and_batches(trace: str) -> None:
    found = {}
    for batch in ("1", "2"):
        done = invoke(trace, "--batch", batch, "-c", "4,9", "--policy", "lru", "--json")
        assert done.exit_code == 0, done.output
        found[batch] = json.loads(done.output)
    assert found["1"]["cache"] == [4, 9]
    assert set(found["1"]["misses"]) == {"opt", "lru"}
    assert found["2"]["requests"] < found["1"]["requests"]
    for document in found.values():
        for best, lru in zip(*document["misses"].values(), strict=True):
            assert best <= lru <= document["uses"]


def test_an_instance() -> None:
    done = invoke("smoke_paging_memory", "--cache", "3", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.output)
    assert document["misses"]["opt"] == [8]
    assert document["load_us"] == pytest.approx(104857.6)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("smoke_paging_costs",), "loads of unequal cost"),
        (("smoke_paging_top1", "--batch", "2"), "are for traces"),
        (("smoke_paging_top1", "--cache", "few"), "numbers with commas, or all"),
        (("smoke_paging_sets", "--cache", "1"), "must be at least 2"),
        (("smoke_paging_top1", "--policy", "clock"), "no policy 'clock'"),
        (("smoke_paging_top1", "--load-us", "0"), "must be positive"),
        (("smoke_placement_unit",), "problem paging needs `paging`"),
        (("smoke_paging_top1", "--plot", "a.txt"), "ends in"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], line: str) -> None:
    done = invoke(*arguments)
    assert isinstance(done.exception, InputError)
    assert line in str(done.exception)
    assert run(lambda: (_ for _ in ()).throw(done.exception)) == 2  # type: ignore[func-returns-value]


def test_too_few_sequences(trace: str) -> None:
    done = invoke(trace, "--sequences", "5")
    assert "--sequences: the trace has 4" in str(done.exception)
