"""Replay traces: sets as ranks, what is shipped, and what a user brings."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from moeopt.errors import InputError
from moeopt.make.traces import derive
from moeopt.make.traces_sets import rank_sets, sets_of
from moeopt.make.traces_shipped import ARRIVALS, ROUTING, read_arrivals, read_trace

TRACES = os.environ.get("MOEOPT_TRACES")
SHIPPED = Path(__file__).resolve().parents[1] / "instances" / "traces"


# --- traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (6, 1), (7, 3), (9, 9), (8, 4)])
def test_ranks_number_all_sets(experts, top_k):
    sets = np.array(list(combinations(range(experts), top_k)))
    ranks = rank_sets(sets[:, ::-1], experts)
    assert sorted(ranks.tolist()) == list(range(len(sets)))
    assert sets_of(ranks, experts, top_k).tolist() == sets.tolist()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rank_sets([[0, 8]], 8), r"not in 0\.\.7"),
        (lambda: rank_sets([[3, 3]], 8), "one expert twice"),
        (lambda: sets_of([28], 8, 2), "no rank of 2 of 8"),
    ],
)
def test_ranks_refuse(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "layers", "experts", "top_k"),
    [("gpt-oss-20b", 24, 32, 4), ("deepseek-v2-lite", 26, 64, 6)],
)
def test_shipped_traces(name, layers, experts, top_k):
    trace = read_trace(name)
    assert (trace.layers, trace.experts, trace.top_k) == (layers, experts, top_k)
    assert f"{len(trace.lengths)} requests" in ROUTING[name]
    assert np.allclose(trace.usage().sum(axis=1), top_k)
    fitted, held = trace.split(3)
    assert len(fitted.ids) + len(held.ids) == len(trace.ids)
    assert len(fitted.lengths) == len(held.lengths)
    whole = np.concatenate([fitted.ids, held.ids]).reshape(len(trace.ids), -1)
    order = np.lexsort(whole.T)
    all_rows = trace.ids.reshape(len(trace.ids), -1)
    assert (whole[order] == all_rows[np.lexsort(all_rows.T)]).all()
    assert (SHIPPED / f"{name}.npz").stat().st_size < 3_000_000


@pytest.mark.parametrize("name", ARRIVALS)
def test_shipped_arrivals(name):
    arrivals = read_arrivals(name)
    assert len(arrivals.arrival_s) == 3000
    assert arrivals.arrival_s[0] == 0


@pytest.mark.skipif(TRACES is None, reason="MOEOPT_TRACES names no folder of raw traces")
def test_shipped_traces_are_derived_from_the_sources():
    for name, data in derive(Path(TRACES)).items():
        assert (SHIPPED / name).read_bytes() == data, name


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_users_trace_is_read(tmp_path):
    ids = np.array([[[0, 2]], [[1, 2]], [[0, 1]]])
    path = save(tmp_path / "mine.npz", ids=ids, experts=3, offsets=[0, 2, 3])
    trace = read_trace(path)
    assert trace.lengths.tolist() == [2, 1]
    assert trace.usage().tolist() == [[2 / 3] * 3]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"offsets": [0, 1]}, "has no array experts"),
        ({"offsets": [0, 1], "experts": 3}, "has neither ids nor sets"),
        ({"offsets": [0, 1], "experts": 0, "ids": [[[0]]]}, "experts must be one whole number"),
        ({"offsets": [0, 1], "experts": 3, "ids": [[[0, 3]]]}, r"not in 0\.\.2"),
        ({"offsets": [0, 1], "experts": 3, "ids": [[[1, 1]]]}, "one expert twice"),
        ({"offsets": [0, 2], "experts": 3, "ids": [[[0, 1]]]}, "offsets must ascend"),
        (
            {"offsets": [0, 1], "experts": 3, "ids": [[[0, 1]]], "prompt_tokens": [1, 2]},
            "prompt_tokens must be 1",
        ),
    ],
)
def test_bad_traces_are_refused(tmp_path, arrays, words):
    with pytest.raises(InputError, match=words):
        read_trace(save(tmp_path / "mine.npz", **arrays))


def test_unknown_traces_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither a file nor a shipped trace"):
        read_trace("gpt-oss")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_arrivals(tmp_path / "text.npz")
    bad = save(tmp_path / "a.npz", arrival_ms=[3, 1], prompt_tokens=[1, 1], output_tokens=[1, 1])
    with pytest.raises(InputError, match="ascending"):
        read_arrivals(bad)
    with pytest.raises(InputError, match="leaves a part empty"):
        read_trace("gpt-oss-20b").split(0, 1.0)
