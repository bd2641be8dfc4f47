"""Placement files of the serving systems: text out, text in.

Each format writes what its system reads at start-up and refuses what the system would refuse,
before the system does. A file is read back as rows of experts by slot, one for each layer of the
instance; :func:`moeopt.serving.layout.layout_from_rows` validates them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from moeopt.errors import InputError
from moeopt.serving.layout import Layout

Rows = list[list[int]]


@dataclass(frozen=True)
class Format:
    """A file that a serving system loads.

    Attributes
    ----------
    option : str
        How the system is told to load it.
    why_not : callable
        Reasons why the system would not load a layout.
    write : callable
        Layout -> text.
    read : callable
        ``read(text, layers)``: text -> rows, for the layers with these numbers in the LLM.
    """

    name: str
    option: str
    why_not: Callable[[Layout], list[str]]
    write: Callable[[Layout], str]
    read: Callable[[str, Sequence[int]], Rows]


def _whole_llm(layout: Layout) -> list[str]:
    """Files without layer numbers, or read for every MoE layer, need all of them."""
    first, last = layout.layers[0], layout.layers[-1]
    total = layout.layers_total
    if layout.layers != tuple(range(first, last + 1)):
        return ["the layers of the instance are not consecutive: the file needs every MoE layer"]
    if total is not None and last != total - 1:
        return [
            f"the instance has layers {first} to {last} of {total}: the file needs every MoE layer"
        ]
    return []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}") from error


def _rows(value: Any, where: str) -> Rows:
    whole = isinstance(value, list) and all(
        isinstance(row, list) and all(type(e) is int for e in row) for row in value
    )
    if not whole:
        raise InputError(f"{where}: must be lists of whole numbers, one list for each layer")
    return list(value)


def _key(document: Any, key: str, kind: type) -> Any:
    if not isinstance(document, dict) or not isinstance(document.get(key), kind):
        raise InputError(f"there is no {key!r} in it")
    return document[key]


# --- SGLang --------------------------------------------------------------------------------------


def _sglang_why_not(layout: Layout) -> list[str]:
    if layout.layers_total is None:
        return ["SGLang wants a row for every hidden layer: the instance lacks moe.layers_total"]
    return []


def _sglang_write(layout: Layout) -> str:
    assert layout.layers_total is not None
    # Dense layers have rows, too; SGLang's own trivial layout repeats the experts in order.
    rows = [(np.arange(layout.slots) % layout.experts).tolist()] * layout.layers_total
    for number, row in zip(layout.layers, layout.experts_of_slots.tolist(), strict=True):
        rows[number] = row
    return json.dumps({"physical_to_logical_map": rows}) + "\n"  # any other key is refused


def _sglang_read(text: str, layers: Sequence[int]) -> Rows:
    rows = _rows(_key(_json(text), "physical_to_logical_map", list), "physical_to_logical_map")
    if len(rows) <= max(layers):
        raise InputError(f"{len(rows)} rows: layer {max(layers)} of the instance has none")
    return [rows[number] for number in layers]


# --- TensorRT-LLM --------------------------------------------------------------------------------


def _tensorrt_write(layout: Layout) -> str:
    document = {
        "initial_global_assignments": dict(
            zip(layout.layers, layout.experts_of_slots.tolist(), strict=True)
        ),
        "layer_updates_per_iter": 0,  # static
        "num_slots": layout.slots,
    }
    return yaml.safe_dump(document, default_flow_style=None, width=2**20)


def _tensorrt_read(text: str, layers: Sequence[int]) -> Rows:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}") from error
    found = _key(document, "initial_global_assignments", dict)
    missing = [number for number in layers if number not in found]
    if missing:
        raise InputError(f"initial_global_assignments: layer {missing[0]} is missing")
    return _rows([found[number] for number in layers], "initial_global_assignments")


# --- vllm-ascend ---------------------------------------------------------------------------------


def _ascend_why_not(layout: Layout) -> list[str]:
    # Its table of an expert's slots keeps only the last copy on a device.
    return [*_whole_llm(layout), *layout.duplicates()]


def _ascend_write(layout: Layout) -> str:
    devices = layout.experts_of_slots.reshape(-1, layout.gpus, layout.slots_per_gpu).tolist()
    document = {
        "moe_layer_count": len(devices),
        "layer_list": [
            {
                "layer_id": l,  # counts MoE layers only
                "device_count": layout.gpus,
                "device_list": [
                    {"device_id": g, "device_expert": experts} for g, experts in enumerate(row)
                ],
            }
            for l, row in enumerate(devices)
        ],
    }
    return json.dumps(document) + "\n"


def _ascend_read(text: str, layers: Sequence[int]) -> Rows:
    entries = _key(_json(text), "layer_list", list)
    rows: Rows = []
    for entry in entries:
        devices = _rows(
            [_key(d, "device_expert", list) for d in _key(entry, "device_list", list)],
            "device_expert",
        )
        if len({len(device) for device in devices}) != 1:
            raise InputError(f"layer {len(rows)}: devices with different numbers of experts")
        rows.append([e for device in devices for e in device])
    return rows


# --- vLLM (files of open pull requests) ----------------------------------------------------------


def _vllm_write(layout: Layout) -> str:
    return json.dumps(layout.experts_of_slots.tolist()) + "\n"


def _vllm_read(text: str, layers: Sequence[int]) -> Rows:
    document = _json(text)
    if isinstance(document, list) and document and all(type(e) is int for e in document):
        document = [document] * len(layers)  # one row for all layers
    return _rows(document, "the file")


def _offline_write(layout: Layout) -> str:
    record = {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": layout.slots - layout.experts,
        "num_slots": layout.slots,
        "initial_global_assignments": {
            str(l): row for l, row in enumerate(layout.experts_of_slots.tolist())
        },
    }
    return json.dumps(record) + "\n"


def _offline_read(text: str, layers: Sequence[int]) -> Rows:
    first = _json(text.splitlines()[0]) if text.strip() else None
    if not isinstance(first, dict) or first.get("record_type") != "eplb_initial_mapping":
        raise InputError("the first record is no eplb_initial_mapping")
    found = _key(first, "initial_global_assignments", dict)
    names = [str(l) for l in range(len(found))]
    if set(names) != set(found):
        raise InputError("initial_global_assignments: layers must be numbered from 0")
    return _rows([found[name] for name in names], "initial_global_assignments")


FORMATS = {
    form.name: form
    for form in (
        Format(
            "sglang",
            "--init-expert-location FILE.json",
            _sglang_why_not,
            _sglang_write,
            _sglang_read,
        ),
        Format(
            "tensorrt-llm",
            "moe_config.load_balancer: FILE.yaml",
            _whole_llm,
            _tensorrt_write,
            _tensorrt_read,
        ),
        Format(
            "vllm-ascend",
            "eplb_config.expert_map_path: FILE.json",
            _ascend_why_not,
            _ascend_write,
            _ascend_read,
        ),
        Format(
            "vllm",
            "eplb_config.initial_expert_map_path: FILE.json (pull request 49572, open)",
            _whole_llm,
            _vllm_write,
            _vllm_read,
        ),
        Format(
            "vllm-offline",
            "eplb_config.initial_mapping_path: FILE.jsonl (pull request 41141, open)",
            _whole_llm,
            _offline_write,
            _offline_read,
        ),
    )
}
