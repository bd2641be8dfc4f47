"""Dumps of serving systems, as their recorders write them, become traces."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeopt.errors import InputError
from moeopt.make.traces_shipped import read_arrivals, read_trace
from moeopt.trace import sglang, systems, tokens
from moeopt.trace.importing import import_trace
from moeopt.trace.loads import load_trace, logical, read_load_trace
from moeopt.trace.skew import skew_of_choices, skew_of_loads
from moeopt.trace.torch_file import read_torch_file

_STORAGES = {
    "<i8": "LongStorage",
    "<i4": "IntStorage",
    "<f4": "FloatStorage",
    "<u2": "BFloat16Storage",
}


class Tensor:
    """Stands for a torch tensor: pickled as torch pickles one."""

    def __init__(self, array: np.ndarray, stride: tuple[int, ...] | None = None) -> None:
        self.array = array
        self.stride = stride or tuple(
            s // array.itemsize for s in np.zeros(array.shape, array.dtype).strides
        )


def torch_save(document: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what ``torch.save`` writes, under the names of torch's classes."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments: object) -> None:
        raise AssertionError("only written, never called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    storages: list[bytes] = []

    class Storage:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Storage):
                return None
            storages.append(value.array.tobytes())
            kind = getattr(torch, _STORAGES[value.array.dtype.str])
            return ("storage", kind, str(len(storages) - 1), "cuda:0", value.array.size)

        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return NotImplemented
            arguments = (
                Storage(value.array),
                0,
                value.array.shape,
                value.stride,
                False,
                OrderedDict(),
            )
            return _rebuild_tensor_v2, arguments

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(document)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, raw in enumerate(storages):
            archive.writestr(f"archive/data/{key}", raw)
    monkeypatch.undo()


# --- torch files ---------------------------------------------------------------------------------


def test_torch_tensors_are_read_without_torch(tmp_path, monkeypatch):
    numbers = np.arange(6, dtype="<i4").reshape(2, 3)
    half = np.array([0x3F80, 0xC000], dtype="<u2")  # 1 and -2 in bfloat16
    document = {"a": Tensor(numbers), "n": 3, "list": [Tensor(half)], "none": None}
    torch_save(document, tmp_path / "f.pt", monkeypatch)
    read = read_torch_file(tmp_path / "f.pt")
    assert read["a"].tolist() == numbers.tolist()
    assert read["a"].dtype == np.int32
    assert read["list"][0].tolist() == [1.0, -2.0]
    assert (read["n"], read["none"]) == (3, None)
    assert "torch" not in sys.modules


def test_strides_of_a_transposed_tensor(tmp_path, monkeypatch):
    base = np.arange(6, dtype="<i8").reshape(2, 3)
    shaped = Tensor(base.reshape(3, 2), stride=(1, 3))
    torch_save({"t": shaped}, tmp_path / "f.pt", monkeypatch)
    assert read_torch_file(tmp_path / "f.pt")["t"].tolist() == base.T.tolist()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path, monkeypatch):
    torch_save(
        {"t": Tensor(np.arange(4, dtype="<i8"), stride=(9,))}, tmp_path / "f.pt", monkeypatch
    )
    with pytest.raises(InputError, match="beyond its storage"):
        read_torch_file(tmp_path / "f.pt")


def test_nothing_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(InputError, match="no tensor, number, text or container"):
        read_torch_file(tmp_path / "f.pt")


@pytest.mark.parametrize("content", [b"", b"not a zip file at all"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(InputError, match="not a zip file"):
        read_torch_file(tmp_path / "f.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_torch_file(tmp_path / "absent.pt")


# --- SGLang --------------------------------------------------------------------------------------


def test_sglang_stat(tmp_path, monkeypatch):
    counts = np.zeros((3, 4, 5), dtype="<i4")  # a buffer of three rows, one never filled
    counts[0, 1:] = np.arange(15).reshape(3, 5)
    counts[2, 1:] = 1
    dump = {
        "rank": 0,
        "logical_count": Tensor(counts),
        "average_utilization_rate_over_window": None,
    }
    torch_save(dump, tmp_path / "expert_distribution_recorder_1.5.pt", monkeypatch)
    trace = sglang.read_loads(tmp_path / "expert_distribution_recorder_1.5.pt")
    assert trace.layers == (1, 2, 3)  # layer 0 is dense
    assert trace.load.tolist() == [counts[0, 1:].tolist(), counts[2, 1:].tolist()]


def _per_pass(rank: int, counts: list[list[list[int]]], slots: list[list[int]]) -> dict[str, Any]:
    records = [
        {
            "forward_pass_id": 7 + i,
            "rank": rank,
            "gatherer_key": "primary",
            "global_physical_count": Tensor(np.array(count, dtype="<i4")),
        }
        for i, count in enumerate(counts)
    ]
    return {
        "records": records,
        "last_physical_to_logical_map": Tensor(np.array(slots, dtype="<i8")),
    }


def test_sglang_per_pass_sums_ranks_and_maps_physical_experts(tmp_path, monkeypatch):
    slots = [[0, 1, 2, 0], [2, 1, 0, 1]]
    first = _per_pass(0, [[[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 0, 0, 0], [0, 0, 0, 1]]], slots)
    second = _per_pass(1, [[[10, 0, 0, 0], [0, 0, 0, 10]]], slots)
    for rank, dump in enumerate((first, second)):
        torch_save(dump, tmp_path / f"expert_distribution_recorder_2_{rank}.pt", monkeypatch)
    trace = sglang.read_loads(tmp_path)
    assert trace.load.tolist() == [[[15, 2, 3], [7, 24, 5]], [[1, 0, 0], [0, 1, 0]]]


def test_sglang_per_token(tmp_path, monkeypatch):
    ids = np.full((2, 3, 8), -1, dtype="<i4")  # layer 0 is dense, eight columns are padded
    ids[1, :, :2] = [[0, 3], [1, 2], [2, 3]]
    record = {
        "forward_pass_id": 1,
        "rank": 0,
        "extend_seq_lens": [1, 2],
        "topk_ids_of_layer": Tensor(ids),
    }
    slots = np.array([[0, 0, 0, 0], [4, 1, 2, 3]], dtype="<i8")
    dump = {"records": [record], "last_physical_to_logical_map": Tensor(slots)}
    path = tmp_path / "expert_distribution_recorder_3_0.pt"
    torch_save(dump, path, monkeypatch)
    import_trace(path, "sglang-tokens", tmp_path / "t.npz")
    trace = read_trace(tmp_path / "t.npz")
    assert trace.ids[:, 0].tolist() == [[4, 3], [1, 2], [2, 3]]
    assert (trace.offsets.tolist(), trace.experts) == ([0, 1, 3], 5)
    loads = sglang.read_loads(path)
    assert loads.load.tolist() == [[[0, 1, 2, 2, 1]]]


def test_sglang_tokens_that_pad_a_batch_are_dropped(tmp_path, monkeypatch):
    ids = np.full((2, 4, 8), -1, dtype="<i4")
    ids[:, :3, :2] = [[0, 3], [1, 2], [2, 3]]
    record = {"forward_pass_id": 1, "rank": 0, "topk_ids_of_layer": Tensor(ids)}
    slots = np.tile(np.arange(4, dtype="<i8"), (2, 1))
    dump = {
        "records": [record | {"extend_seq_lens": [1, 2]}],
        "last_physical_to_logical_map": Tensor(slots),
    }
    torch_save(dump, tmp_path / "f.pt", monkeypatch)
    arrays = sglang.read_choices(tmp_path / "f.pt")
    assert arrays["ids"].shape == (3, 2, 2)
    assert arrays["offsets"].tolist() == [0, 1, 3]


def test_sglang_counts_without_windows(tmp_path, monkeypatch):
    counts = np.arange(6, dtype="<i4").reshape(2, 3)
    torch_save({"logical_count": Tensor(counts)}, tmp_path / "f.pt", monkeypatch)
    assert sglang.read_loads(tmp_path / "f.pt").load.tolist() == [counts.tolist()]


def test_sglang_dumps_of_two_servers_are_not_summed(tmp_path, monkeypatch):
    dump = _per_pass(0, [[[1, 2]]], [[0, 1]])
    for at in (1, 2):
        torch_save(dump, tmp_path / f"expert_distribution_recorder_{at}_0.pt", monkeypatch)
    with pytest.raises(InputError, match="forward pass 7 of rank 0 twice"):
        sglang.read_loads(tmp_path)


@pytest.mark.parametrize("key", ["rank", "forward_pass_id"])
def test_sglang_records_without_a_number(tmp_path, monkeypatch, key):
    dump = _per_pass(0, [[[1, 2]]], [[0, 1]])
    del dump["records"][0][key]
    torch_save(dump, tmp_path / "f.pt", monkeypatch)
    with pytest.raises(InputError, match=f"no number '{key}'"):
        sglang.read_loads(tmp_path / "f.pt")


def test_other_dumps_are_refused(tmp_path, monkeypatch):
    torch_save({"weights": 1}, tmp_path / "f.pt", monkeypatch)
    with pytest.raises(InputError, match="neither counts nor records"):
        sglang.read_loads(tmp_path / "f.pt")
    with pytest.raises(InputError, match="no file expert_distribution_recorder"):
        sglang.read_loads(tmp_path)


# --- TensorRT-LLM, vLLM, matrices ----------------------------------------------------------------


def test_tensorrt_sums_ranks(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "meta_info.json").write_text('{"num_experts": 3, "num_experts_per_token": 2}')
    for rank in (0, 1):
        arrays = {
            f"{i}_{l}": np.array([rank + 1, i, l], dtype=np.int64)
            for i in (100, 101)
            for l in (3, 4)
        }
        save_file(arrays, tmp_path / f"rank{rank}.safetensors")
    save_file({"raw": np.zeros(1)}, tmp_path / "rank0_raw.safetensors")
    trace = systems.read_tensorrt(tmp_path)
    assert trace.layers == (3, 4)
    assert trace.load.tolist() == [[[3, 200, 6], [3, 200, 8]], [[3, 202, 6], [3, 202, 8]]]
    save_file({"100_3": np.zeros(3)}, tmp_path / "rank0.safetensors")
    save_file({"101_4": np.zeros(3)}, tmp_path / "rank1.safetensors")
    with pytest.raises(InputError, match="iteration 100 has no layer 4"):
        systems.read_tensorrt(tmp_path)


def test_vllm_statistics(tmp_path):
    record = {
        "record_type": "eplb_load_stats",
        "version": 1,
        "step": 7,
        "num_ranks": 2,
        "expert_load": [[1, 2, 3, 4]],
        "p2l_map": [[0, 1, 1, 0]],
    }
    path = tmp_path / "stats.jsonl"
    other = json.dumps({"record_type": "eplb_initial_mapping"})
    path.write_text(f"{other}\n{json.dumps(record)}\n")
    assert systems.read_vllm(path).load.tolist() == [[[5, 5]]]
    # A later revision writes what all records share into the first one.
    shared = json.dumps({"record_type": "eplb_load_meta", "version": 1, "num_ranks": 2})
    short = {key: value for key, value in record.items() if key != "num_ranks"}
    path.write_text(f"{shared}\n{json.dumps(short)}\n")
    assert systems.read_vllm(path).load.tolist() == [[[5, 5]]]
    path.write_text(json.dumps(record | {"expert_load": [[1, 2]]}))
    with pytest.raises(InputError, match="line 1: loads of shape"):
        systems.read_vllm(path)
    path.write_text(other)
    with pytest.raises(InputError, match="no eplb_load_stats record"):
        systems.read_vllm(path)


def test_matrices(tmp_path):
    (tmp_path / "m.csv").write_text("1,2\n3,4\n")
    assert systems.read_matrix(tmp_path / "m.csv").load.tolist() == [[[1, 2], [3, 4]]]
    np.save(tmp_path / "m.npy", np.ones((2, 3, 4)))
    assert systems.read_matrix(tmp_path / "m.npy").load.shape == (2, 3, 4)
    (tmp_path / "m.csv").write_text("1,x\n")
    with pytest.raises(InputError, match="line 1, column 2: 'x' is not a number"):
        systems.read_matrix(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("load", "line"),
    [
        (np.ones(3), "shape"),
        (-np.ones((2, 2)), "not negative"),
        (np.full((2, 2), np.nan), "finite"),
        (np.zeros((2, 2)), "every load is zero"),
    ],
)
def test_loads_that_are_none(load, line):
    with pytest.raises(InputError, match=line):
        load_trace("x", load)


def test_empty_slots_have_no_expert():
    assert logical([[1, 2, 4]], [[1, -1, 1]], 2).tolist() == [[0, 5]]
    with pytest.raises(InputError, match="expert 2 of 2"):
        logical([[1]], [[2]], 2)


# --- choices and requests ------------------------------------------------------------------------


def test_choices_and_their_default_offsets(tmp_path):
    ids = np.array([[[0, 1]], [[2, 1]], [[0, 2]]])
    np.save(tmp_path / "ids.npy", ids)
    import_trace(tmp_path / "ids.npy", "choices", tmp_path / "t.npz")
    trace = read_trace(tmp_path / "t.npz")
    assert (trace.experts, trace.offsets.tolist()) == (3, [0, 3])
    np.save(tmp_path / "flat.npy", ids[:, 0])
    with pytest.raises(InputError, match=r"expected whole numbers \[tokens, layers, k\]"):
        tokens.read_choices(tmp_path / "flat.npy")


def test_requests_of_azure_and_mooncake(tmp_path):
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:47.0000000,10,5\n"
        "2023-11-16 18:15:46.5000000,20,1\n"
        "2023-11-16 18:15:48.0000000,7,0\n"
    )
    import_trace(tmp_path / "a.csv", "azure", tmp_path / "a.npz")
    arrivals = read_arrivals(tmp_path / "a.npz")
    assert arrivals.arrival_s.tolist() == [0.0, 0.5]
    assert arrivals.prompt_tokens.tolist() == [20, 10]
    lines = [{"timestamp": 27, "input_length": 9, "output_length": 2, "hash_ids": []}] * 2
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    import_trace(tmp_path / "m.jsonl", "mooncake", tmp_path / "m.npz")
    assert read_arrivals(tmp_path / "m.npz").output_tokens.tolist() == [2, 2]
    (tmp_path / "a.csv").write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:15:47,1\n")
    with pytest.raises(InputError, match="line 2: needs TIMESTAMP"):
        tokens.read_azure(tmp_path / "a.csv")
    (tmp_path / "m.jsonl").write_text("{}")
    with pytest.raises(InputError, match="line 1: needs timestamp"):
        tokens.read_mooncake(tmp_path / "m.jsonl")


# --- skew ----------------------------------------------------------------------------------------


def test_skew_of_loads():
    load = np.array([[[4.0, 0, 0, 0]], [[0, 4.0, 0, 0]]])
    skew = skew_of_loads(load)
    assert (skew.peak.tolist(), skew.drift.tolist()) == ([2.0], [1.0])
    assert skew_of_loads(load[:1]).drift.tolist() == [0.0]


def test_skew_of_choices():
    ids = np.array([[[0, 1]]] * 6 + [[[2, 3]]] * 2)
    skew = skew_of_choices(ids, 4)
    assert skew.peak.tolist() == [1.5]
    assert skew.drift.tolist() == [0.5]  # all of (0, 1), then half of each
    # The pair (0, 1) comes in 6/8 of the tokens; by chance (6/8)²/2.
    assert skew.affinity is not None
    assert skew.affinity[0] == pytest.approx((6 / 8) / ((6 / 8) ** 2 / 2))
    assert skew.sets is not None
    assert [int(skew.sets[share][0]) for share in (0.5, 0.8, 0.99)] == [1, 2, 2]


# --- the commands --------------------------------------------------------------------------------


def moeopt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moeopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_trace_commands(tmp_path):
    (tmp_path / "m.csv").write_text("1,2,9\n3,4,5\n")
    out = tmp_path / "t.npz"
    done = moeopt("trace", "import", tmp_path / "m.csv", "--from", "matrix", "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 layers × 3 experts" in done.stderr
    assert read_load_trace(out).total.tolist() == [[1, 2, 9], [3, 4, 5]]
    again = moeopt("trace", "import", tmp_path / "m.csv", "--from", "matrix", "-o", out)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    shown = moeopt("trace", "show", out, "--plot", tmp_path / "t.svg")
    assert shown.returncode == 0, shown.stderr
    assert "largest 2.25" in shown.stdout
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")
    assert moeopt("show", out).stdout == shown.stdout
    assert "sglang-tokens" in moeopt("trace", "import").stdout
    wrong = moeopt("trace", "import", tmp_path / "m.csv", "--from", "sglan", "-o", out, "--force")
    assert (wrong.returncode, "no importer 'sglan'" in wrong.stderr) == (2, True)
    wrong = moeopt("trace", "show", "nothing")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    wrong = moeopt("trace", "show", "azure-conv", "--plot", tmp_path / "a.svg")
    assert (wrong.returncode, "has no loads" in wrong.stderr) == (2, True)
