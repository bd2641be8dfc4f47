"""What is too large is refused: numbers alone, products and sums, before room is made for it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs_pages import PAGES, ROOT, text_of

from moeopt import instance_limits
from moeopt.cli import app, run
from moeopt.errors import InputError
from moeopt.instance import Instance, json_schema, read_instance_file
from moeopt.prepare import prepare
from moeopt.solution import read_solution_file

SMOKE = ROOT / "instances" / "smoke"
Document = dict[str, Any]
Change = Callable[[Document], object]


def smoke(name: str, change: Change | None = None) -> Document:
    document: Document = json.loads((SMOKE / f"smoke_{name}.json").read_text(encoding="utf-8"))
    if change is not None:
        change(document)
    return document


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.problems


def node(**values: Any) -> Change:
    return lambda d: d["cluster"]["nodes"][0].update(values)


def request(**values: Any) -> Change:
    return lambda d: d["requests"][0].update(values)


def block(name: str, **values: Any) -> Change:
    return lambda d: d[name].update(values)


def layer(**values: Any) -> Change:
    return lambda d: d["routing"][0].update(values)


def many_nodes(document: Document) -> None:
    document["cluster"]["nodes"] = [{"gpus": 4096, "memory_mib": 200}] * 2


def many_classes(document: Document) -> None:
    one = document["requests"][0]
    document["requests"] = [{**one, "name": f"r{i}"} for i in range(10_001)]


MOST_MIB = "8,589,934,592"
REFUSED: list[tuple[Change, list[str]]] = [
    (
        node(memory_mib=1e13),
        [f"cluster.nodes[0].memory_mib: must be at most {MOST_MIB}, not 10000000000000.0"],
    ),
    (
        node(memory_mib=1e300),
        [f"cluster.nodes[0].memory_mib: must be at most {MOST_MIB}, not 1e+300"],
    ),
    (node(memory_mib=10**400), ["cluster.nodes[0].memory_mib: is a number that is too large"]),
    (
        node(memory_mib=8e9),
        [f"cluster.nodes: all memory_mib are 16,000,000,000 MiB, must be at most {MOST_MIB}"],
    ),
    (
        block("moe", kv_kib_per_token=1e300),
        ["moe.kv_kib_per_token: must be at most 1,000,000,000, not 1e+300"],
    ),
    (
        request(count=999_997, output_tokens=10**9),
        [f"requests: their KV caches are 499,998,504,000,000 MiB, must be at most {MOST_MIB}"],
    ),
    (
        request(output_tokens=10**15),
        ["requests[0].output_tokens: must be at most 1,000,000,000, not 1000000000000000"],
    ),
    (request(count=10**6), ["requests: 1,000,003 requests in all, must be at most 1,000,000"]),
    (many_classes, ["requests: 10,001 classes, must be at most 10,000"]),
    (block("moe", experts=10**9), ["moe.experts: must be at most 4,096, not 1000000000"]),
    (
        block("moe", expert_mib=4e9),
        [
            "moe.expert_mib: 1 layers × 3 experts × 4,000,000,000 MiB are 12,000,000,000, "
            f"must be at most {MOST_MIB}"
        ],
    ),
    (
        block("moe", layers=4096, experts=4096),
        ["moe: 4,096 layers × 4,096 experts are 16,777,216, must be at most 1,048,576"],
    ),
    (node(gpus=10**7), ["cluster.nodes[0].gpus: must be at most 4,096, not 10000000"]),
    (many_nodes, ["cluster.nodes: 8,192 GPUs in all, must be at most 4,096"]),
    (
        lambda d: (node(gpus=4096)(d), block("moe", layers=256, experts=4096)(d)),
        [
            "moe: 256 layers × 4,096 experts × 4,096 GPUs are 4,294,967,296, "
            "must be at most 268,435,456",
        ],
    ),
    (block("joint", waves=10**6), ["joint.waves: must be at most 1,000, not 1000000"]),
    (
        lambda d: d.update(joint={"wave_steps": [1] * 1001}),
        ["joint.wave_steps: 1,001 waves, must be at most 1,000"],
    ),
    (
        lambda d: (node(gpus=4096)(d), block("moe", experts=128)(d), block("joint", waves=1000)(d)),
        [
            "joint.waves: 1,000 waves × 128 experts × 4,096 GPUs are 524,288,000, "
            "must be at most 268,435,456",
        ],
    ),
    (
        layer(load=[1e300, -1e300, 1]),
        [
            "routing[0].load[0]: must be at most 1,000,000,000,000, not 1e+300",
            "routing[0].load[1]: must be at least -1,000,000,000,000, not -1e+300",
        ],
    ),
    (
        layer(scenarios={"experts": [[0], [1, 2]], "weight": [1, 1], "tokens": [[1], [2, 10**10]]}),
        ["routing[0].scenarios.tokens[1][1]: must be at most 1,000,000,000, not 10000000000"],
    ),
    (
        block("layer_time", base_us=1e300),
        ["layer_time.base_us: must be at most 1,000,000,000, not 1e+300"],
    ),
    (
        block("layer_time", token_us=1e-300),
        ["layer_time.token_us: must be 0 or at least 1e-06, not 1e-300"],
    ),
]


@pytest.mark.parametrize(("change", "lines"), REFUSED, ids=[lines[0][:60] for _, lines in REFUSED])
def test_what_is_too_large_is_refused(change: Change, lines: list[str]) -> None:
    document = smoke("joint_two_waves", change)
    assert problems(lambda: Instance.from_document(document)) == lines


def test_too_large_in_other_blocks() -> None:
    paging = smoke("paging_costs", lambda d: d["paging"].pop("load_us"))
    paging["paging"]["load_gb_s"] = 1e-9
    assert problems(lambda: Instance.from_document(paging)) == [
        "paging.load_gb_s: one expert takes 104,857,600,000,000 µs, must be at most 1,000,000,000"
    ]
    affinity = smoke("affinity_chain", block("moe", layers=32, experts=4096))
    assert problems(lambda: Instance.from_document(affinity)) == [
        "affinity: 32 layers × 4,096 experts × 4,096 experts of the next layer are 536,870,912, "
        "must be at most 268,435,456"
    ]
    wide = np.arange(4096).tolist()
    many = smoke("placement_unit", block("moe", experts=4096))
    many["routing"][0]["scenarios"] = {"experts": [wide, *[[0]] * 70_000], "weight": [1] * 70_001}
    assert problems(lambda: Instance.from_document(many)) == [
        "routing[0].scenarios.experts: 70,001 scenarios × 4,096 experts are 286,724,096, "
        "must be at most 268,435,456"
    ]


def test_waves_that_are_counted_have_the_same_limit() -> None:
    document = smoke("joint_two_waves", request(count=10**5, output_tokens=80))
    del document["joint"]
    instance = Instance.from_document(document)
    assert problems(lambda: prepare(instance, "joint")) == [
        "requests (without joint.waves): 40,002 waves, must be at most 1,000"
    ]


@pytest.mark.parametrize(
    "change",
    [node(memory_mib=1e13), node(gpus=10**7), block("moe", experts=10**9)],
    ids=["memory", "gpus", "experts"],
)
def test_commands_refuse_with_one_line(
    tmp_path: Path, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.json"
    path.write_text(json.dumps(smoke("joint_two_waves", change)), encoding="utf-8")
    for command in (["solve", str(path), "-p", "joint"], ["show", str(path)]):
        assert run(lambda c=command: app(c)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "must be at most" in line


def test_sidecar_array_that_claims_too_much_is_not_read(tmp_path: Path) -> None:
    header = io.BytesIO()
    claimed = {"descr": "<f8", "fortran_order": False, "shape": (2**29,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr("load.npy", header.getvalue())
    document = smoke("joint_two_waves", layer(load={"npz": "load"})) | {
        "arrays": "large.npz",
        "arrays_sha256": hashlib.sha256((tmp_path / "large.npz").read_bytes()).hexdigest(),
    }
    path = tmp_path / "large.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert problems(lambda: read_instance_file(path)) == [
        "routing[0].load: 536,870,912 numbers, must be at most 268,435,456"
    ]


def numbers_without_end(schema: Any, path: str = "") -> Iterator[str]:
    """Yield the places of a JSON Schema where any large number would do."""
    if isinstance(schema, list):
        for i, part in enumerate(schema):
            yield from numbers_without_end(part, f"{path}[{i}]")
    elif isinstance(schema, dict):
        if schema.get("type") in ("number", "integer") and "maximum" not in schema:
            yield path
        for key, part in schema.items():
            yield from numbers_without_end(part, f"{path}.{key}")


def test_every_number_of_an_instance_has_a_largest_value() -> None:
    schema = json_schema()
    assert list(numbers_without_end(schema)) == []
    without = copy.deepcopy(schema)
    del without["$defs"]["Moe"]["properties"]["layers"]["maximum"]
    assert list(numbers_without_end(without)) == [".$defs.Moe.properties.layers"]


def test_the_largest_sensible_instances_are_read() -> None:
    """58 layers of 256 experts on 1,024 GPUs, with as many requests as may be."""
    change = {"layers": 58, "experts": 256, "top_k": 8}
    document = smoke("joint_two_waves", block("moe", **change))
    document["cluster"]["nodes"] = [{"gpus": 8, "memory_mib": 196_608, "reserved_mib": 50}] * 128
    document["routing"] = [{"layer": l, "load": [1] * 256} for l in range(58)]
    document["requests"][0] |= {"count": 999_997, "prompt_tokens": 8_000, "output_tokens": 1_000}
    document["joint"]["waves"] = 16
    instance = Instance.from_document(document)
    assert prepare(instance, "joint").free_mib is not None


def test_limits_are_documented() -> None:
    section = text_of("format.md").split("### Limits")[1].split("\n### ")[0]
    limits = {name: v for name, v in vars(instance_limits).items() if name.startswith("MOST_")}
    assert len(limits) >= 9
    assert [name for name, v in limits.items() if f"{v:,.15g}" not in section] == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"waves": [{"requests": {"long": [10**30, 0]}}]}, "waves[0].requests.long[0]"),
        ({"dispatch": [[[[0, 0, 1e300]]]]}, "dispatch[0][0][0][2]"),
        ({"evictions": [[10**30, 0, 0]]}, "evictions[0][0]"),
    ],
)
def test_plans_with_absurd_numbers_are_refused(tmp_path: Path, change: Document, line: str) -> None:
    document = {"schema": "moeopt-solution/1", "instance": "x", "problem": "joint", "hosts": []}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document | change), encoding="utf-8")
    (found,) = problems(lambda: read_solution_file(path))
    assert found.startswith(f"{line}: must be at most 1,000,000,000")


# --- short forms ---------------------------------------------------------------------------------


def test_one_load_time_needs_no_brackets() -> None:
    bare = Instance.from_document(smoke("paging_costs", block("paging", load_us=3)))
    listed = Instance.from_document(smoke("paging_costs", block("paging", load_us=[3])))
    assert bare == listed
    assert prepare(bare, "paging").paging.load_us.tolist() == [3.0, 3.0]
    for wrong in (True, "3"):
        document = smoke("paging_costs", block("paging", load_us=wrong))
        assert problems(lambda d=document: Instance.from_document(d)) == [
            f'paging.load_us: must be a number, a list or {{"npz": "KEY"}}, not {json.dumps(wrong)}'
        ]


def test_kept_experts_need_no_brackets() -> None:
    document = smoke("activation_fixed")
    listed = Instance.from_document(document)
    hosts = document["activation"]["hosts"]
    document["activation"]["hosts"] = [[gpu for (gpu,) in rows] for rows in hosts]
    assert Instance.from_document(document) == listed


# --- extras --------------------------------------------------------------------------------------


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    files = [*PAGES, ROOT / "README.md", *(ROOT / "moeopt").rglob("*.py")]
    named = {
        (path.name, name.strip())
        for path in files
        for part in path.read_text(encoding="utf-8").split("moeopt[")[1:]
        for name in part.split("]")[0].split(",")
    }
    named = {(file, name) for file, name in named if name.replace("-", "").isalnum()}
    assert ("engine_dask.py", "cluster") in named
    assert [(file, name) for file, name in sorted(named) if name not in extras] == []
