"""Every error message of an instance file: one broken file each, all its lines exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeopt.errors import InputError
from moeopt.instance import Instance, read_instance_file

FOLDER = Path(__file__).parent / "broken"
#: Keys of an instance, by the names they have in a file.
KEYS = [field.alias or name for name, field in Instance.model_fields.items()]

#: Lines by file; {folder} stands for the folder of the files.
BROKEN: dict[str, list[str]] = {
    "arrays_absolute": [
        "arrays: must be relative to the instance, not '/x.npz'",
    ],
    "arrays_hash_form": [
        "arrays: {folder}/no.npz: no such file",
        'arrays_sha256: must match ^[0-9a-fA-F]{64}$, not "abc"',
    ],
    "arrays_missing": [
        "arrays: {folder}/no.npz: no such file",
    ],
    "arrays_without_hash": [
        "arrays_sha256: missing, but `arrays` names a file",
    ],
    "bool_number": [
        "moe.experts: must be a whole number, not true",
    ],
    "coefficient_negative": [
        "layer_time.token_us: must be at least 0, not -3",
    ],
    "covered_weight": [
        "routing[0].scenarios.covered_weight: must be at most 1, not 1.5",
    ],
    "dense_missing": [
        "moe.dense_mib: missing, but cluster.nodes give memory_mib",
    ],
    "expert_bool": [
        "routing[0].scenarios.experts[0][1]: must be a whole number, not true",
    ],
    "expert_groups": [
        "moe.expert_groups: 3 does not divide 4 experts",
    ],
    "expert_outside": [
        "routing[0].scenarios.experts[1][1]: expert 32 does not exist (experts are 0..3)",
        "routing[0].scenarios.experts[2][2]: expert -1 does not exist (experts are 0..3)",
    ],
    "expert_repeated": [
        "routing[0].scenarios.experts[1]: expert 2 appears more than once",
    ],
    "expert_text": [
        'routing[0].scenarios.experts[1][1]: must be a whole number, not "3"',
        "routing[0].scenarios.experts[2][2]: must be a whole number, not 1.0",
    ],
    "float_integer": [
        "cluster.slots_per_gpu: must be a whole number, not 2.5",
    ],
    "form_needs_coefficient": [
        "layer_time: the form max needs expert_us or token_us above 0",
    ],
    "form_unit_coefficient": [
        "layer_time.base_us: is not used by the form unit",
        "layer_time.expert_us: is not used by the form unit",
        "layer_time.token_us: is not used by the form unit",
    ],
    "form_unknown": [
        "layer_time.form: must be 'unit', 'sum', 'max' or 'p2', not \"mean\"",
    ],
    "form_unused_coefficient": [
        "layer_time.token_base_us: is not used by the form sum",
    ],
    "gpus_zero": [
        "cluster.nodes[0].gpus: must be at least 1, not 0",
    ],
    "hops_diagonal": [
        "cluster.hops[1][1]: must be 0 inside a node",
    ],
    "hops_negative": [
        "cluster.hops[0][1]: must not be negative",
    ],
    "hops_ragged": [
        "cluster.hops[1]: has 1 entries, not 2",
    ],
    "hops_shape": [
        "cluster.hops: is 1 × 1, but there are 2 nodes",
    ],
    "json_empty": [
        "{folder}/json_empty.json: line 1 column 1: not JSON: Expecting value",
    ],
    "json_infinity": [
        "{folder}/json_infinity.json: -Infinity is no JSON number",
    ],
    "json_key_twice": [
        "{folder}/json_key_twice.json: the key 'name' appears twice in one object",
    ],
    "json_latin1": [
        "{folder}/json_latin1.json: not UTF-8 text (byte 48)",
    ],
    "json_list": [
        "{folder}/json_list.json: must be a JSON object, not a list",
    ],
    "json_nan": [
        "{folder}/json_nan.json: NaN is no JSON number",
    ],
    "json_truncated": [
        "{folder}/json_truncated.json: line 15 column 60: not JSON: Expecting value",
    ],
    "key_missing": [
        "moe.experts: missing",
    ],
    "key_unknown": [
        "moe.top_K: unknown key (did you mean top_k?)",
    ],
    "key_unknown_far": [
        "moe.colour: unknown key (known keys: name, layers, experts, top_k, expert_mib, "
        "dense_mib, kv_kib_per_token, hidden_size, expert_groups, layers_total)",
    ],
    "key_unknown_top": [
        "routings: unknown key (did you mean routing?)",
    ],
    "layer_empty": [
        "routing[1]: needs scenarios or load",
    ],
    "layer_negative": [
        "routing[1].layer: must be at least 0, not -1",
    ],
    "layer_twice": [
        "routing[1].layer: 3 is also routing[0].layer",
    ],
    "layers_total": [
        "moe.layers_total: 1 is less than moe.layers, 2",
    ],
    "layers_zero": [
        "moe.layers: must be at least 1, not 0",
    ],
    "list_expected": [
        'cluster.nodes: must be a list, not {"gpus": 2}',
    ],
    "load_length": [
        "routing[1].load: has 3 entries for 4 experts",
    ],
    "load_negative": [
        "routing[1].load[3]: must not be negative, is -4",
    ],
    "load_zero": [
        "routing[1].load: all entries are 0",
    ],
    "memory_and_slots_missing": [
        "cluster: needs slots_per_gpu, or memory_mib in every node",
    ],
    "memory_missing_in_one_node": [
        "cluster.nodes[1].memory_mib: missing, but other nodes have it",
    ],
    "memory_taken": [
        "cluster.nodes[0]: reserved_mib 990 and dense_mib 50 are more than memory_mib 1,000",
    ],
    "name_empty": [
        "name: must not be empty",
    ],
    "name_number": [
        "name: must be a text, not 7",
    ],
    "next_columns": [
        "routing[0].next[0]: has 2 entries, not 3",
    ],
    "next_expert": [
        "routing[0].next[0][1]: expert 4 does not exist (experts are 0..3)",
    ],
    "next_tokens": [
        "routing[0].next[0]: tokens must not be negative, is -5",
    ],
    "nodes_empty": [
        "cluster.nodes: must not be empty",
    ],
    "number_infinite": [
        "moe.expert_mib: must be a finite number, not Infinity",
    ],
    "number_text": [
        'moe.expert_mib: must be a number, not "100"',
    ],
    "object_expected": [
        "cluster.nodes[1]: must be an object, not 3",
    ],
    "request_count": [
        "requests[0].count: must be at least 1, not 0",
    ],
    "request_name_twice": [
        "requests[0].name: 'chat' is used 2 times",
        "requests[1].name: 'chat' is used 2 times",
    ],
    "request_output": [
        "requests[0].output_tokens: must be at least 1, not 0",
    ],
    "request_prompt": [
        "requests[0].prompt_tokens: must be at least 0, not -1",
    ],
    "requests_empty": [
        "requests: must not be empty",
    ],
    "routing_empty": [
        "routing: must not be empty",
        "routing: has 0 layers, but moe.layers is 1",
    ],
    "routing_length": [
        "routing: has 2 layers, but moe.layers is 3",
    ],
    "scenario_empty": [
        "routing[0].scenarios.experts[1]: has no experts",
    ],
    "scenario_number": [
        "routing[0].scenarios.experts[1]: must be a list, not 5",
    ],
    "scenarios_none": [
        "routing[0].scenarios.experts: must have at least one scenario",
    ],
    "schema_missing": [
        "schema: missing (this version of moeopt reads moeopt-instance/1)",
    ],
    "schema_version": [
        'schema: "moeopt-instance/9" is not read (this version of moeopt reads moeopt-instance/1)',
    ],
    "several": [
        "name: missing",
        'moe.layers: must be a whole number, not "2"',
        "cluster.nodes[0].gpus: must be at least 1, not 0",
        "layer_time.form: must be 'unit', 'sum', 'max' or 'p2', not \"mean\"",
        f"extra: unknown key (known keys: {', '.join(KEYS)})",
        "routing[0].scenarios.experts[2]: expert 0 appears more than once",
        "routing[0].scenarios.weight: has 2 entries for 3 scenarios",
        "routing[0].scenarios.weight[1]: must not be negative, is -2",
        "routing[1].load: all entries are 0",
        "joint.wave_steps: has 1 entries for 2 waves",
    ],
    "share_class": [
        "joint.share.cod: there is no such request class",
    ],
    "share_sum": [
        "joint.share: sums to 0.9, not to 1",
    ],
    "size_negative": [
        "moe.dense_mib: must be at least 0, not -1",
    ],
    "size_zero": [
        "moe.expert_mib: must be greater than 0, not 0",
    ],
    "text_number": [
        'moe.top_k: must be a whole number, not "2"',
    ],
    "tokens_float": [
        "routing[0].scenarios.tokens[1][0]: must be a whole number, not 1.5",
    ],
    "tokens_rows": [
        "routing[0].scenarios.tokens: has 2 entries for 3 scenarios",
    ],
    "tokens_shape": [
        "routing[0].scenarios.tokens[1]: has 3 entries for 2 experts",
        "routing[0].scenarios.tokens[2]: has 2 entries for 3 experts",
    ],
    "tokens_zero": [
        "routing[0].scenarios.tokens[1][0]: must be at least 1, not 0",
    ],
    "top_k_large": [
        "moe.top_k: 5 is more than the 4 experts of a layer",
    ],
    "usage_negative": [
        "requests[0].usage[1][2]: must not be negative, is -1",
    ],
    "usage_shape": [
        "requests[0].usage: is 1 × 4, but there are 2 layers of 4 experts",
    ],
    "usage_sum": [
        "requests[0].usage[1]: sums to 2.1, not to top_k = 2",
    ],
    "wave_steps_empty": [
        "joint.wave_steps: must not be empty",
    ],
    "wave_steps_length": [
        "joint.wave_steps: has 1 entries for 2 waves",
    ],
    "waves_zero": [
        "joint.waves: must be at least 1, not 0",
    ],
    "weight_length": [
        "routing[0].scenarios.weight: has 2 entries for 3 scenarios",
    ],
    "weight_negative": [
        "routing[0].scenarios.weight[1]: must not be negative, is -2",
    ],
    "weight_npz_no_arrays": [
        'routing[0].scenarios.weight: {"npz": …} needs `arrays`, the file that holds it',
    ],
    "weight_null": [
        "routing[0].scenarios.weight[1]: must be a number, not null",
    ],
    "weight_object": [
        'routing[0].scenarios.weight: must be a list or {"npz": "KEY"}, not {"npy": "w"}',
    ],
    "weight_text": [
        'routing[0].scenarios.weight: must be a list or {"npz": "KEY"}, not "1,2,3"',
    ],
    "weight_zero": [
        "routing[0].scenarios.weight: all entries are 0",
    ],
}
BROKEN["many_of_a_kind"] = [
    f"routing[0].scenarios.experts[{s}][0]: expert 9 does not exist (experts are 0..3)"
    for s in range(20)
] + ["... and 980 more of this kind"]


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_file_reports_all_its_problems(name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_instance_file(FOLDER / f"{name}.json")
    assert caught.value.problems == [line.replace("{folder}", str(FOLDER)) for line in BROKEN[name]]
    assert caught.value.exit_status == 2


def test_every_broken_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(BROKEN)
