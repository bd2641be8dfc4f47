"""Instance files: reading, hashing, sidecars, writing, the published schema."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from moeopt.arrays import Rows, sidecar_bytes
from moeopt.errors import InputError
from moeopt.instance import Instance, json_schema, read_instance_file, write_instance_file
from moeopt.schemas import published_schemas

ROOT = Path(__file__).parent.parent
SMOKE = sorted((ROOT / "instances" / "smoke").glob("*.json"))

DOCUMENT: dict[str, Any] = {
    "schema": "moeopt-instance/1",
    "name": "toy_2l",
    "moe": {"name": "toy", "layers": 2, "experts": 4, "top_k": 2, "expert_mib": 100},
    "cluster": {"nodes": [{"gpus": 1}, {"gpus": 1}], "slots_per_gpu": 2, "hops": [[0, 1], [1, 0]]},
    "layer_time": {"form": "sum", "expert_us": 2},
    "routing": [
        {
            "layer": 3,
            "scenarios": {
                "experts": [[0, 1], [2, 3, 1], [0]],
                "weight": [1, 2, 0.5],
                "tokens": [[1, 1], [2, 1, 7], [3]],
            },
            "next": [[0, 1, 5], [3, 3, 2]],
        },
        {"layer": 4, "load": [1, 2, 3, 4]},
    ],
    "requests": [
        {
            "name": "chat",
            "count": 3,
            "prompt_tokens": 10,
            "output_tokens": 5,
            "usage": [[0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0]],
        }
    ],
}

SIDECAR = {
    "e": np.array([[0, 1, -1], [2, 3, 1], [0, -1, -1]], dtype=np.int8),
    "t": np.array([[1, 1, -1], [2, 1, 7], [3, -1, -1]], dtype=np.int16),
    "w": np.array([1, 2, 0.5], dtype=np.float32),
    "next": np.array([[0, 1, 5], [3, 3, 2]], dtype=np.uint8),
    "load": np.array([1, 2, 3, 4], dtype=np.uint16),
    "usage": np.array([[0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0]]),
    "hops": np.array([[0, 1], [1, 0]]),
}


def with_sidecar(folder: Path, arrays: dict[str, Any] = SIDECAR) -> dict[str, Any]:
    raw = sidecar_bytes(arrays)
    (folder / "toy.npz").write_bytes(raw)
    document = copy.deepcopy(DOCUMENT)
    document["arrays"] = "toy.npz"
    document["arrays_sha256"] = hashlib.sha256(raw).hexdigest()
    layers = document["routing"]
    layers[0]["scenarios"] = {
        "experts": {"npz": "e"},
        "weight": {"npz": "w"},
        "tokens": {"npz": "t"},
    }
    layers[0]["next"] = {"npz": "next"}
    layers[1]["load"] = {"npz": "load"}
    document["requests"][0]["usage"] = {"npz": "usage"}
    document["cluster"]["hops"] = {"npz": "hops"}
    return document


def put(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "toy.json"
    path.write_text(json.dumps(document))
    return path


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.problems


def test_fields_are_read(tmp_path: Path) -> None:
    instance = read_instance_file(put(tmp_path, DOCUMENT))
    scenarios = instance.routing[0].scenarios
    assert scenarios is not None
    assert scenarios.experts.ptr.tolist() == [0, 2, 5, 6]
    assert scenarios.experts.values.tolist() == [0, 1, 2, 3, 1, 0]
    assert scenarios.tokens is not None
    assert scenarios.tokens.tolist() == [[1, 1], [2, 1, 7], [3]]
    assert scenarios.covered_weight == 1.0
    assert instance.cluster.gpus == 2
    assert instance.cluster.nodes[0].reserved_mib == 0.0
    assert isinstance(instance.moe.expert_mib, float)  # an int is a number
    assert instance.requests is not None
    assert instance.requests[0].usage is not None
    assert instance.requests[0].usage.dtype == np.float64


def test_instance_and_its_arrays_are_frozen() -> None:
    instance = Instance.from_document(DOCUMENT)
    with pytest.raises(ValueError):
        instance.moe.experts = 5  # type: ignore[misc]
    load = instance.routing[1].load
    assert load is not None
    with pytest.raises(ValueError):
        load[0] = 7


def test_hash_is_what_its_docstring_says() -> None:
    def array(numbers: list[Any], code: str, shape: list[int]) -> list[Any]:
        raw = np.array(numbers, dtype=code).tobytes()
        return [{"<i8": "int64", "<f8": "float64"}[code], shape, hashlib.sha256(raw).hexdigest()]

    ptr = array([0, 2, 5, 6], "<i8", [4])
    zero = {"base_us": 0.0, "token_base_us": 0.0, "token_us": 0.0}
    attention = {"attention_base_us": 0.0, "attention_us_per_mib": 0.0}
    canonical = {
        "schema": "moeopt-instance/1",
        "name": "toy_2l",
        "moe": {**DOCUMENT["moe"], "expert_mib": 100.0, "expert_groups": 1},
        "cluster": {
            "nodes": [{"gpus": 1, "reserved_mib": 0.0}] * 2,
            "slots_per_gpu": 2,
            "hops": array([0, 1, 1, 0], "<f8", [2, 2]),
        },
        "layer_time": {"form": "sum", "expert_us": 2.0, **zero, **attention},
        "routing": [
            {
                "layer": 3,
                "scenarios": {
                    "experts": [ptr, array([0, 1, 2, 3, 1, 0], "<i8", [6])],
                    "tokens": [ptr, array([1, 1, 2, 1, 7, 3], "<i8", [6])],
                    "weight": array([1, 2, 0.5], "<f8", [3]),
                    "covered_weight": 1.0,
                },
                "next": array([0, 1, 5, 3, 3, 2], "<f8", [2, 3]),
            },
            {"layer": 4, "load": array([1, 2, 3, 4], "<f8", [4])},
        ],
        "requests": [
            {
                **DOCUMENT["requests"][0],
                "usage": array([0.5, 0.5, 0.5, 0.5, 1, 1, 0, 0], "<f8", [2, 4]),
            }
        ],
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert Instance.from_document(DOCUMENT).sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_hash_ignores_the_form_of_the_file(tmp_path: Path) -> None:
    plain = read_instance_file(put(tmp_path, DOCUMENT))
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(DOCUMENT, indent=1).encode()))
    beside = read_instance_file(put(tmp_path, with_sidecar(tmp_path)))
    explicit = copy.deepcopy(DOCUMENT)
    explicit["joint"] = None
    explicit["moe"] |= {"expert_groups": 1, "expert_mib": 100.0}
    others = [read_instance_file(packed), beside, Instance.from_document(explicit)]
    assert {other.sha256 for other in others} == {plain.sha256}
    assert all(other == plain for other in others)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["routing"][0]["scenarios"]["weight"].__setitem__(0, 1.0000000000000002),
        lambda d: d["routing"][0]["scenarios"]["experts"].__setitem__(0, [1, 0]),
        lambda d: d["routing"][0]["scenarios"].__setitem__("tokens", None),
        lambda d: d["routing"][1]["load"].__setitem__(0, 2),
        lambda d: d["requests"][0].__setitem__("count", 4),
        lambda d: d.__setitem__("name", "other"),
        lambda d: d["layer_time"].__setitem__("expert_us", 3),
    ],
)
def test_hash_changes_with_the_content(change: Callable[[dict[str, Any]], None]) -> None:
    changed = copy.deepcopy(DOCUMENT)
    change(changed)
    before, after = Instance.from_document(DOCUMENT), Instance.from_document(changed)
    assert before.sha256 != after.sha256
    assert before != after


@pytest.mark.parametrize("name", ["copy.json", "copy.json.gz"])
@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_written_instances_are_read_back(
    tmp_path: Path, path: Path, name: str, sidecar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeopt.instance.SIDECAR_FROM", 1)
    instance = read_instance_file(path)
    write_instance_file(instance, tmp_path / name, sidecar=sidecar)
    assert (tmp_path / "copy.npz").exists() is sidecar
    assert read_instance_file(tmp_path / name) == instance
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_instance_file(instance, tmp_path / name, sidecar=sidecar, force=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first


def test_ragged_rows_survive_a_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeopt.instance.SIDECAR_FROM", 1)
    instance = write_instance_file(DOCUMENT, tmp_path / "toy.json", sidecar=True)
    assert "npz" in json.loads((tmp_path / "toy.json").read_text())["requests"][0]["usage"]
    assert read_instance_file(tmp_path / "toy.json") == instance


def test_writing_never_overwrites_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    path.write_text("mine")
    for sidecar in (False, True):
        lines = problems(lambda s=sidecar: write_instance_file(DOCUMENT, path, sidecar=s))
        assert lines == [f"{path}: exists already, not overwritten"]
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["toy.json"]
    write_instance_file(DOCUMENT, path, force=True)
    assert read_instance_file(path).name == "toy_2l"


def test_writing_checks_first(tmp_path: Path) -> None:
    bad = {**DOCUMENT, "name": ""}
    assert problems(lambda: write_instance_file(bad, tmp_path / "x.json")) == [
        "name: must not be empty"
    ]
    assert not list(tmp_path.iterdir())


def test_writing_into_no_folder_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no" / "x.json"
    lines = problems(lambda: write_instance_file(DOCUMENT, path))
    assert lines == [f"{path}: cannot be written: No such file or directory"]


def test_constructor_checks_across_fields() -> None:
    instance = Instance.from_document(DOCUMENT)
    parts = {name: getattr(instance, name) for name in ("name", "cluster", "layer_time", "routing")}
    moe = instance.moe.model_copy(update={"layers": 3})
    assert problems(lambda: Instance(moe=moe, **parts)) == [
        "routing: has 2 layers, but moe.layers is 3"
    ]


def test_sidecar_with_another_hash(tmp_path: Path) -> None:
    document = with_sidecar(tmp_path) | {"arrays_sha256": "0" * 64}
    (line,) = problems(lambda: read_instance_file(put(tmp_path, document)))
    assert line.startswith("arrays_sha256: ")
    assert line.endswith(f"not {'0' * 64}")


def test_sidecar_without_a_key(tmp_path: Path) -> None:
    arrays = {key: array for key, array in SIDECAR.items() if key not in ("t", "hops")}
    path = put(tmp_path, with_sidecar(tmp_path, arrays))
    assert problems(lambda: read_instance_file(path)) == [
        "cluster.hops: toy.npz has no array 'hops'",
        "routing[0].scenarios.tokens: toy.npz has no array 't'",
    ]


@pytest.mark.parametrize(
    ("key", "array", "line"),
    [
        ("w", np.array(["a", "b", "c"]), "scenarios.weight: must hold numbers, not <U1"),
        ("w", np.array([True, True, True]), "scenarios.weight: must hold numbers, not bool"),
        ("w", np.array([[1.0, 2, 3]]), "scenarios.weight: must have 1 dimensions, not 2"),
        ("w", np.array([1, np.nan, 3]), "scenarios.weight[1]: must be a finite number"),
        ("e", np.array([[0.5, 1, 2]] * 3), "scenarios.experts: must hold integers, not float64"),
        ("e", np.array([0, 1, 2]), "scenarios.experts: must have 2 dimensions, not 1"),
        (
            "e",
            np.full((3, 2), 2**64 - 1, dtype=np.uint64),
            "scenarios.experts: holds a number that is too large",
        ),
        ("next", np.zeros((1, 2)), "next: has 2 columns, not 3"),
    ],
)
def test_sidecar_array_of_a_wrong_kind(tmp_path: Path, key: str, array: Any, line: str) -> None:
    path = put(tmp_path, with_sidecar(tmp_path, SIDECAR | {key: array}))
    assert problems(lambda: read_instance_file(path)) == [f"routing[0].{line}"]


def test_sidecar_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    document = with_sidecar(tmp_path)
    npz = tmp_path / "toy.npz"
    np.savez(npz, allow_pickle=True, **(SIDECAR | {"w": np.array([print, 1, 2], dtype=object)}))
    document["arrays_sha256"] = hashlib.sha256(npz.read_bytes()).hexdigest()
    (line,) = problems(lambda: read_instance_file(put(tmp_path, document)))
    assert line.startswith("routing[0].scenarios.weight: the array 'w' of toy.npz cannot be read")


def test_sidecar_that_is_no_npz(tmp_path: Path) -> None:
    document = with_sidecar(tmp_path)
    for raw in (b"no archive", b"", (tmp_path / "toy.npz").read_bytes()[:200]):
        (tmp_path / "toy.npz").write_bytes(raw)
        document["arrays_sha256"] = hashlib.sha256(raw).hexdigest()
        (line,) = problems(lambda: read_instance_file(put(tmp_path, document)))
        assert line.startswith(f"arrays: {tmp_path / 'toy.npz'} is no npz file")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "no.json"
    assert problems(lambda: read_instance_file(missing)) == [f"{missing}: no such file"]
    folder = f"{tmp_path}: is a folder, not a file"
    assert problems(lambda: read_instance_file(tmp_path)) == [folder]
    packed = tmp_path / "x.json.gz"
    whole = gzip.compress(json.dumps(DOCUMENT).encode())
    for raw in (b"{}", whole[: len(whole) // 2]):
        packed.write_bytes(raw)
        (line,) = problems(lambda: read_instance_file(packed))
        assert line.startswith(f"{packed}: not a complete gzip file")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 1_000_000)
    assert problems(lambda: read_instance_file(deep)) == [f"{deep}: nested too deeply"]


def test_numbers_too_large_for_arrays_are_one_line() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["routing"][0]["scenarios"]["experts"][0] = [0, 10**30]
    document["routing"][1]["load"] = [10**400, 1, 1, 1]
    assert problems(lambda: Instance.from_document(document)) == [
        "routing[0].scenarios.experts: holds a number that is too large",
        "routing[1].load: holds a number that is too large",
    ]


def test_rows_padded() -> None:
    rows = Rows(np.array([0, 2, 2, 3]), np.array([5, 6, 7]))
    assert rows.padded().tolist() == [[5, 6], [-1, -1], [7, -1]]
    assert rows.row.tolist() == [0, 0, 2]


def test_large_instances_are_checked_in_about_a_second() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["moe"]["experts"] = 64
    experts = np.argsort(np.random.default_rng(1).random((300_000, 64)), axis=1)[:, :6]
    document["routing"] = [
        {"layer": 3, "scenarios": {"experts": experts.tolist(), "weight": [1] * 300_000}},
        {"layer": 4, "load": [1] * 64},
    ]
    document["requests"] = None
    start = time.process_time()
    instance = Instance.from_document(document)
    assert len(instance.sha256) == 64
    assert time.process_time() - start < 3  # measured: 0.4 s


def test_published_schemas_are_current() -> None:
    for name, text in published_schemas().items():
        path = ROOT / "docs" / "schemas" / name
        assert path.read_text() == text, "run: python -m moeopt.schemas docs/schemas"


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_schema_accepts_the_smoke_instances(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), json_schema())


def test_schema_accepts_sidecars_and_refuses_what_the_reader_refuses(tmp_path: Path) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(with_sidecar(tmp_path), schema)
    for name in ("key_missing", "key_unknown", "text_number", "weight_object", "schema_missing"):
        broken = json.loads((ROOT / "tests" / "broken" / f"{name}.json").read_text())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
