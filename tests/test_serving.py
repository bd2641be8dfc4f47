"""Placement files of serving systems: written, refused, read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.serving.exchange import export_plan, import_plan
from moeopt.serving.formats import FORMATS
from moeopt.serving.layout import fill, layout_from_rows, layout_of
from moeopt.solution import Solution, write_solution_file

LAYERS, EXPERTS, GPUS = 3, 8, 2


def an_instance(**moe: object) -> Instance:
    """Three MoE layers behind a dense one, 8 experts on 2 GPUs of 5 slots."""
    rng = np.random.default_rng(0)
    routing = [
        {
            "layer": l + 1,
            "scenarios": {
                "experts": [sorted(rng.choice(EXPERTS, 2, replace=False).tolist())],
                "weight": [1],
            },
            "load": rng.integers(1, 9, EXPERTS).tolist(),
        }
        for l in range(LAYERS)
    ]
    return Instance.from_document(
        {
            "schema": "moeopt-instance/1",
            "name": "served",
            "moe": {
                "name": "tiny",
                "layers": LAYERS,
                "layers_total": LAYERS + 1,
                "experts": EXPERTS,
                "top_k": 2,
                "expert_mib": 1.0,
            }
            | moe,
            "cluster": {"nodes": [{"gpus": GPUS}], "slots_per_gpu": 5},
            "layer_time": {"form": "unit"},
            "routing": routing,
        }
    )


def a_plan(instance: Instance, slots: int = 5) -> Solution:
    """Contiguous, then filled with replicas."""
    hosts = np.zeros((LAYERS, EXPERTS, GPUS), dtype=bool)
    hosts[:, np.arange(EXPERTS), np.arange(EXPERTS) // 4] = True
    data = prepare(instance, "replication")
    return Solution.from_arrays(data, fill(hosts, data.load, slots))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("slots", [4, 5])
def test_round_trip(name: str, slots: int, tmp_path: Path) -> None:
    instance = an_instance()
    plan = a_plan(instance, slots)
    layout = export_plan(instance, plan, name, tmp_path / "file")
    assert (layout.slots, layout.slots_per_gpu) == (2 * slots, slots)
    back = import_plan(instance, tmp_path / "file", name)
    assert back.problem == ("placement" if slots == 4 else "replication")
    assert back.hosts == plan.hosts


def test_what_is_written(tmp_path: Path) -> None:
    instance = an_instance()
    plan = a_plan(instance)
    texts = {}
    for name in FORMATS:
        export_plan(instance, plan, name, tmp_path / name)
        texts[name] = (tmp_path / name).read_text()
    rows = layout_of(instance, plan.hosts_array(GPUS)).experts_of_slots.tolist()

    sglang = json.loads(texts["sglang"])
    assert list(sglang) == ["physical_to_logical_map"]  # any other key is an error there
    assert sglang["physical_to_logical_map"] == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1], *rows]

    tensorrt = yaml.safe_load(texts["tensorrt-llm"])
    assert set(tensorrt) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert tensorrt["num_slots"] == 10
    assert tensorrt["initial_global_assignments"] == dict(zip([1, 2, 3], rows, strict=True))

    ascend = json.loads(texts["vllm-ascend"])
    assert ascend["moe_layer_count"] == 3
    device = ascend["layer_list"][2]["device_list"][1]
    assert (device["device_id"], device["device_expert"]) == (1, rows[2][5:])

    assert json.loads(texts["vllm"]) == rows
    offline = json.loads(texts["vllm-offline"])
    assert (offline["num_redundant_experts"], offline["num_slots"]) == (2, 10)
    assert offline["initial_global_assignments"]["0"] == rows[0]


def test_the_published_example_of_vllm_ascend_is_read() -> None:
    text = """{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2,
      "device_list": [{"device_id": 0, "device_expert": [7, 2, 0, 3, 5]},
                      {"device_id": 1, "device_expert": [6, 1, 4, 7, 2]}]}]}"""
    assert FORMATS["vllm-ascend"].read(text, [0]) == [[7, 2, 0, 3, 5, 6, 1, 4, 7, 2]]


def test_uneven_plans_are_refused_or_filled(tmp_path: Path) -> None:
    instance = an_instance()
    data = prepare(instance, "replication")
    hosts = a_plan(instance, 4).hosts_array(GPUS)
    hosts[1, 0, 1] = True
    plan = Solution.from_arrays(data, hosts)
    with pytest.raises(InputError) as refused:
        export_plan(instance, plan, "sglang", tmp_path / "file")
    # The second layer of the instance is layer 2; all others hold four where one GPU holds five.
    assert "layer 2: GPU 0 holds 4 experts, others 5" in refused.value.problems
    assert "--fill" in refused.value.problems[-1]
    assert not (tmp_path / "file").exists()
    layout = export_plan(instance, plan, "sglang", tmp_path / "file", filled=True)
    assert layout.slots_per_gpu == 5
    assert (layout.hosts >= hosts).all()


def test_replicas_go_to_the_most_loaded() -> None:
    hosts = np.array([[[True, False], [True, False], [False, True], [False, True]]])
    load = np.array([[9.0, 1.0, 4.0, 2.0]])
    filled = fill(hosts, load, 3)
    assert filled[0].tolist() == [[True, True], [True, False], [True, True], [False, True]]
    with pytest.raises(InputError, match=r"between 2 .* and 4"):
        fill(hosts, load, 5)
    with pytest.raises(InputError):
        fill(hosts, load, 1)


def test_a_plan_that_breaks_a_rule_is_not_exported(tmp_path: Path) -> None:
    instance = an_instance()
    plan = a_plan(instance)
    broken = plan.model_copy(update={"hosts": [[[0, 1]] * EXPERTS] * LAYERS})
    with pytest.raises(InputError, match="breaks a rule"):
        export_plan(instance, broken, "sglang", tmp_path / "file")
    with pytest.raises(InputError, match="no format 'sglan'"):
        export_plan(instance, plan, "sglan", tmp_path / "file")


def test_filling_respects_slots(tmp_path: Path) -> None:
    instance = an_instance()
    with pytest.raises(InputError, match="no room for the replicas"):
        export_plan(instance, a_plan(instance), "sglang", tmp_path / "file", slots=6)


def test_missing_layers_are_refused_where_the_system_needs_them(tmp_path: Path) -> None:
    instance = an_instance(layers_total=9)
    plan = a_plan(instance)
    for name in set(FORMATS) - {"sglang"}:
        with pytest.raises(InputError, match="layers 1 to 3 of 9"):
            export_plan(instance, plan, name, tmp_path / name)
    export_plan(instance, plan, "sglang", tmp_path / "sglang")
    assert len(json.loads((tmp_path / "sglang").read_text())["physical_to_logical_map"]) == 9
    with pytest.raises(InputError, match="layers_total"):
        export_plan(an_instance(layers_total=None), plan, "sglang", tmp_path / "other")


def test_duplicates_on_a_device() -> None:
    instance = an_instance()
    row = [0, 1, 2, 3, 3, 4, 5, 6, 7, 0]
    layout = layout_from_rows(instance, [row, row[::-1], [*range(8), 0, 1]], "f")
    assert layout.duplicates() == [
        "layer 1: GPU 0 holds two copies of an expert",
        "layer 2: GPU 1 holds two copies of an expert",
    ]
    assert FORMATS["vllm-ascend"].why_not(layout) == layout.duplicates()
    assert FORMATS["sglang"].why_not(layout) == []
    assert layout.hosts[0].sum() == 9


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("sglang", "[1, 2", "not JSON"),
        ("sglang", '{"logical_count": []}', "no 'physical_to_logical_map'"),
        ("sglang", '{"physical_to_logical_map": [[0]]}', "layer 3 of the instance has none"),
        ("vllm", "[[0, 1.5]]", "whole numbers"),
        ("vllm", "[[0, 1], [0, 1, 2], [0]]", "layers with 1 to 3 slots"),
        ("vllm", "[0, 1, 2, 3, 4, 5, 6]", "7 slots do not divide among 2 GPUs"),
        ("vllm", "[0, 1, 2, 3, 4, 5, 6, 6]", "layer 1: expert 7 has no slot"),
        ("vllm", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 0]", "layer 1: there is no expert 8"),
        ("vllm", "[[0, 1, 2, 3, 4, 5, 6, 7]]", "1 layers, the instance has 3"),
        ("tensorrt-llm", "a: [", "not YAML"),
        ("tensorrt-llm", "initial_global_assignments: {1: [0], 3: [1]}", "layer 2 is missing"),
        ("vllm-offline", "", "no eplb_initial_mapping"),
        (
            "vllm-offline",
            '{"record_type": "eplb_initial_mapping", "initial_global_assignments": {"1": [0]}}',
            "numbered from 0",
        ),
        (
            "vllm-ascend",
            '{"layer_list": [{"device_list": [{"device_expert": [0]}, {"device_expert": []}]}]}',
            "different numbers",
        ),
    ],
)
def test_files_that_do_not_fit(name: str, text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        import_plan(an_instance(), path, name)
    assert any(line in problem and str(path) in problem for problem in refused.value.problems)


def test_the_commands_round_trip_a_shipped_instance(tmp_path: Path) -> None:
    instance = read_instance("gpt-oss-20b_8gpu_5slots")
    data = prepare(instance, "replication")
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    hosts[:, np.arange(data.experts), np.arange(data.experts) // 4] = True
    plan = Solution.from_arrays(data, fill(hosts, data.load, 5))
    write_solution_file(plan, tmp_path / "plan.json")

    def moeopt(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "moeopt", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    file, back = tmp_path / "map.yaml", tmp_path / "back.json"
    done = moeopt(
        "export", instance.name, tmp_path / "plan.json", "--to", "tensorrt-llm", "-o", file
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "24 layers, 40 slots on 8 GPUs, 8 of them redundant experts" in " ".join(
        done.stderr.split()
    )
    done = moeopt("import", instance.name, file, "--from", "tensorrt-llm", "-o", back)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(back.read_text())["hosts"]
        == json.loads((tmp_path / "plan.json").read_text())["hosts"]
    )
    again = moeopt("import", instance.name, file, "--from", "tensorrt-llm", "-o", back)
    assert (again.returncode, "exists" in again.stderr) == (2, True)
