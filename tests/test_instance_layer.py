"""``NAME@10``: one layer of an instance."""

from __future__ import annotations

import numpy as np
import pytest

from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.instance_layer import layer_of, split_reference
from moeopt.prepare import prepare


def test_references() -> None:
    assert split_reference("name@10") == ("name", 10)
    assert split_reference("a@b/name.json") == ("a@b/name.json", None)
    assert split_reference("name@") == ("name@", None)
    assert split_reference("@3") == ("@3", None)


def test_a_layer_is_what_the_single_layer_instance_is() -> None:
    cut = prepare(read_instance("gpt-oss-20b_8gpu@10"), "placement")
    shipped = prepare(read_instance("gpt-oss-20b_l10_8gpu"), "placement")
    assert (cut.layers, cut.slots, cut.gpus) == (1, shipped.slots, shipped.gpus)
    assert cut.free_mib is None
    assert cut.layer_numbers == shipped.layer_numbers == (10,)
    for name in ("ptr", "expert", "tokens", "weight"):
        assert np.array_equal(getattr(cut.scenarios[0], name), getattr(shipped.scenarios[0], name))


def test_paths_take_layers_too(tmp_path) -> None:
    from moeopt.catalog import instance_path

    whole = read_instance(f"{instance_path('gpt-oss-20b_8gpu')}@3")
    assert whole == read_instance("gpt-oss-20b_8gpu@3")
    assert whole.name == "gpt-oss-20b_8gpu@3"
    assert whole != read_instance("gpt-oss-20b_8gpu@4")


def test_layers_that_cannot_be_cut_out() -> None:
    with pytest.raises(InputError, match="has no layer 24: its layers are 0 to 23"):
        read_instance("gpt-oss-20b_8gpu@24")
    with pytest.raises(InputError, match="no slots are given"):
        read_instance("mixtral-8x7b_4gpu_azure@0")
    with pytest.raises(InputError, match="neither a file nor a shipped instance"):
        read_instance("gpt-oss@1")
    with pytest.raises(InputError, match="its layers are 10 to 10"):
        layer_of(read_instance("gpt-oss-20b_l10_8gpu"), 1)
