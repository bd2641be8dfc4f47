"""The command ``activation``, its plots, and the recipes of its instances."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moeopt.calibrate.layer_cost import layer_time
from moeopt.catalog import read_instance
from moeopt.commands.activating import activation
from moeopt.errors import InputError
from moeopt.make import activation as sampled
from moeopt.make import deepseek_v2_lite, deepseek_v2_lite_activation, gpt_oss, gpt_oss_activation


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(activation)
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if done.exception:
        raise done.exception
    return done.stdout


def test_kept_mass_is_printed_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "kept.svg"
    printed = run("smoke_activation_unit", "--plot", str(path))
    assert "50.000  80.000  100.000" in printed
    assert "kept experts of a token" in path.read_text()
    with pytest.raises(InputError, match="exists; --force overwrites it"):
        run("smoke_activation_unit", "--plot", str(path))


def test_the_front_is_printed_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "front.svg"
    arguments = ("smoke_activation_sum", "--front", "--points", "3", "--plot", str(path))
    document = json.loads(run(*arguments, "--json"))
    assert document["batch"] == 3
    placed = document["ways"]["placed"]
    # Its budgets: nothing, half, all that one expert of two drops, which is also a uniform one.
    assert [point["least_kept_mass"] for point in placed] == [1.0, 0.8, 0.6]
    assert placed[-1]["step"] == 19.875  # the optimum of the smoke instance
    assert placed[-1]["activated"] == [1]
    assert all(point["lower_bound"] <= point["step"] for point in placed)
    drawn = path.read_text()
    for words in ("bound: no plan above", "contiguous, uniform", "tokens a second"):
        assert words in drawn
    printed = run(*arguments, "--force")
    assert "60.00" in printed
    assert "19.875" in printed


def test_an_instance_without_the_block_is_refused() -> None:
    with pytest.raises(InputError, match="needs the block `activation`"):
        run("smoke_placement_unit")


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [gpt_oss_activation, deepseek_v2_lite_activation])
def test_layer_times_are_the_calibrated_ones(recipe: Any) -> None:
    moe = "gpt-oss-20b" if recipe is gpt_oss_activation else "deepseek-v2-lite"
    block = layer_time(recipe.GPU, moe, "p2").block
    assert block == {
        "form": "p2",
        "base_us": recipe.BASE_US,
        "expert_us": recipe.EXPERT_US,
        "token_us": recipe.TOKEN_US,
        "attention_base_us": recipe.STREAM_US,
        "attention_us_per_mib": recipe.US_PER_MIB,
    }


def test_choices_are_ranked_by_gate_weight() -> None:
    ids = np.array([[[3, 1, 2]], [[0, 1, 2]]], dtype=np.uint8)
    gate = np.array([[[0.1, 0.3, 0.1]], [[2.0, 1.0, 2.0]]])
    made = sampled.ranked(ids, gate)
    assert made.ids[:, 0].tolist() == [[1, 3, 2], [0, 2, 1]]
    assert made.share.tolist() == [[0.5, 0.3, 0.2]]


def test_steps_are_counted() -> None:
    members, tokens = sampled.counted(np.array([[2, 0, 2], [1, 1, 1]], dtype=np.uint8), 4)
    assert members.tolist() == [[0, 2], [1, -1]]
    assert tokens.tolist() == [[1, 2], [3, -1]]
    assert tokens.dtype == np.int8
    many = np.zeros((1, 128), dtype=np.uint8)
    assert sampled.counted(many, 4)[1].dtype == np.int16


def test_prompts_are_consecutive() -> None:
    steps = sampled.sample(5000, 2048, consecutive=True)
    assert (np.diff(steps) == 1).all()
    assert steps.max() < 5000
    assert sampled.sample(5000, 16, consecutive=False).shape == (sampled.STEPS[16], 16)


def test_attention_reads_the_cache_of_the_fullest_gpu() -> None:
    # Three requests on two GPUs: two on one, 2 · 1,536 tokens of 4 KiB are 12 MiB.
    assert sampled.attention_us(100.0, 0.5, 4.0, 3, 2) == 106.0
    assert sampled.attention_us(100.0, 0.5, 4.0, 2048, 2) == 100.0


@pytest.mark.parametrize("recipe", [gpt_oss_activation, deepseek_v2_lite_activation])
def test_both_layouts_give_the_same_gates(tmp_path: Path, recipe: Any) -> None:
    write = _write_gpt_oss if recipe is gpt_oss_activation else _write_esft
    found = []
    for condensed in (False, True):
        data_dir = tmp_path / str(condensed)
        write(data_dir, condensed)
        gates = recipe.read_gates(data_dir)
        found.append(gates[1] if isinstance(gates, tuple) else gates)
    assert found[0].dtype == found[1].dtype == np.float16
    assert np.array_equal(found[0], found[1])
    with pytest.raises(InputError, match="commit"):
        recipe.read_gates(tmp_path)


def _write_gpt_oss(data_dir: Path, condensed: bool) -> None:
    folder = data_dir / gpt_oss.SOURCE.folder
    rng = np.random.default_rng(1)
    gates = rng.dirichlet(np.ones(4), (5, 24)).astype(np.float16)
    ids = np.tile(np.arange(4, dtype=np.uint8), (5, 24, 1))
    parts = {"True_False": slice(0, 2), "True_True": slice(2, 5)}  # the second is repetitive
    folder.mkdir(parents=True)
    if condensed:
        np.savez(folder / "gptoss20b_ids.npz", ids=ids, offsets=[0, 2, 5])
        np.savez(folder / "gptoss20b_probs.npz", probs=gates)
        meta = [{"repetition": False}, {"repetition": True}]
        (folder / "gptoss20b_meta.json").write_text(json.dumps(meta))
        return
    for name, rows in parts.items():
        router = [
            {
                f"token_{t}": {
                    f"layer_{l}": {
                        "selected_experts": ids[t, l].tolist(),
                        "selected_probs": gates[t, l].astype(float).tolist(),
                    }
                    for l in range(24)
                }
            }
            for t in range(rows.start, rows.stop)
        ]
        path = folder / "data" / "set" / "category" / f"{name}_examples.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"has_repetition": name == "True_True", "router_data": router}
        path.write_text(json.dumps(document))


def _write_esft(data_dir: Path, condensed: bool) -> None:
    folder = data_dir / deepseek_v2_lite.SOURCE.folder
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    arrays = {}
    for task in deepseek_v2_lite.TASKS:
        scores = rng.uniform(0.01, 0.4, (3, 26, 6)).astype(np.float16)
        arrays[f"{task}_scores"] = scores
        if condensed:
            continue
        below = folder / "results" / "expert_scores" / task
        below.mkdir(parents=True)
        for i in range(26):
            lines = [
                "\t".join(["0"] * row.size) + "\t\t" + "\t".join(map(str, row.ravel().tolist()))
                for row in (scores[:2, i], scores[2:, i])
            ]
            (below / f"expert_weights_{i + 1}.txt").write_text("\n".join(lines) + "\n")
    if condensed:
        np.savez(folder / "esft_dsv2lite_scores.npz", **arrays)


def test_shipped_instances_are_nested() -> None:
    options = read_instance("gpt-oss-20b_4gpu_activation_b16").activation
    assert options is not None
    assert options.batch == 16
    for layer in options.scenarios:
        for j, scenarios in enumerate(layer, 1):
            assert scenarios.tokens is not None
            totals = np.add.reduceat(scenarios.tokens.values, scenarios.tokens.ptr[:-1])
            assert (totals == 16 * j).all()
        for fewer, more in pairwise(layer):
            for few, many in zip(fewer.experts.tolist(), more.experts.tolist(), strict=True):
                assert set(few) <= set(many)
