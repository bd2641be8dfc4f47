"""Cluster graphs, and the command that puts an instance on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moeopt.catalog import read_instance
from moeopt.commands.graphing import instance_topology
from moeopt.errors import InputError
from moeopt.make import make
from moeopt.make.on_graph import Wanted, put_on_graph
from moeopt.prepare import prepare
from moeopt.topology.graphs import hops_of

REAL = Path(__file__).resolve().parents[1] / "instances" / "real"


@pytest.mark.parametrize(
    ("graph", "servers", "counts"),
    [
        ("fat-tree:4", 16, {0: 1, 2: 1, 4: 2, 6: 12}),
        ("fat-tree:4", 3, None),
        ("racks:3x4", 12, {0: 1, 2: 3, 4: 8}),
        ("dragonfly:1x5", 5, {0: 1, 1: 4}),
    ],
)
def test_regular_graphs(graph: str, servers: int, counts: dict[int, int] | None) -> None:
    hops = hops_of(graph, servers)
    assert (hops == hops.T).all()
    assert not np.diag(hops).any()
    assert (hops[:, None] <= hops[:, :, None] + hops[None]).all()  # the triangle inequality
    if counts is not None:
        for row in hops:
            values, found = np.unique(row, return_counts=True)
            assert dict(zip(values.tolist(), found.tolist(), strict=True)) == counts


def test_dragonfly_links() -> None:
    hops = hops_of("dragonfly:5x4", 20)
    racks = np.arange(20) // 4
    same = racks[:, None] == racks
    assert (hops[same & ~np.eye(20, dtype=bool)] == 1).all()
    # One link a pair of racks, each on a server of its own: 4 others, 4 servers.
    between = (hops == 1) & ~same
    assert (between.sum(axis=1) == 1).all()
    assert hops.max() == 3
    sparse = hops_of("dragonfly-sparse:5x4", 20)
    assert (sparse >= hops).all()
    assert ((sparse == 1) & ~same).sum() == 2 * 5
    assert hops_of("dragonfly-sparse:1x3", 3).max() == 1
    assert hops_of("dragonfly-sparse:2x1", 2).tolist() == [[0, 1], [1, 0]]


def test_files(tmp_path: Path) -> None:
    matrix = np.array([[0, 2.5], [1, 0]])
    np.savetxt(tmp_path / "h.csv", matrix, delimiter=",")
    np.save(tmp_path / "h.npy", matrix)
    for name in ("h.csv", "h.npy"):
        assert (hops_of(f"hops:{tmp_path / name}", 2) == matrix).all()
    (tmp_path / "links.txt").write_text("# a switch\n0 sw\n1,sw\n0 1 5\n1 0 3\nsw 2 0.5\n\n")
    assert hops_of(f"edges:{tmp_path / 'links.txt'}", 3).tolist() == [
        [0, 2, 1.5],
        [2, 0, 1.5],
        [1.5, 1.5, 0],
    ]


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ("torus:3", "write one of"),
        ("dragonfly", "write one of"),
        ("dragonfly:4", "write dragonfly:GxA"),
        ("racks:0x4", "write racks:GxA"),
        ("racks:2x4", "is of 8 servers, the cluster has 4"),
        ("fat-tree:3", "even number of ports"),
        ("fat-tree:2", "has 2 servers, the cluster 4"),
        ("hops:absent.csv", "absent.csv"),
        ("edges:absent.txt", "absent.txt"),
    ],
)
def test_graphs_that_do_not_fit(graph: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hops_of(graph, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1\n", "no path from server 0 to server 2"),
        ("0\n", "line 1: write FROM TO"),
        ("0 1 x\n", "line 1: write FROM TO"),
        ("0 1\n0 2 -1\n", "line 2: a link has a positive number of hops"),
    ],
)
def test_links_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "links.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        hops_of(f"edges:{tmp_path / 'links.txt'}", 3)


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(instance_topology)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception:
        raise done.exception
    return done.stdout


def test_an_instance_is_put_on_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    arguments = ["deepseek-v2-lite_8gpu_joint", "-o", str(path), "--graph", "racks:2x2"]
    options = ["--servers", "4", "--gpus-per-server", "3", "--slots", "7", "--capacity", "430"]
    assert run(*arguments, *options, "--attention", "everywhere", "--replicas", "9") == f"{path}\n"
    with pytest.raises(InputError, match="exists"):
        run(*arguments)
    made, old = read_instance(path), read_instance("deepseek-v2-lite_8gpu_joint")
    assert made.name == "deepseek-v2-lite_8gpu_joint_topology_racks"
    data = prepare(made, "topology").topology
    assert data is not None
    assert data.hops.tolist() == hops_of("racks:2x2", 4).tolist()
    assert data.node_of_gpu.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert data.capacity.tolist() == [430] * 4
    assert data.capacity_per_layer.tolist() == [21] * 4
    assert (data.dispatch == np.arange(4)).all()
    assert (data.collect == np.arange(4)).all()
    assert data.share.tolist() == [0.25] * 4
    assert data.replicas == 9
    load = np.stack([layer.load for layer in old.routing])
    assert data.weight == pytest.approx(6 * load / load.sum(axis=1, keepdims=True))


def test_where_attention_is() -> None:
    old = read_instance("smoke_balance_even")  # 2 layers, 3 GPUs in one node
    for attention, dispatch in (("spread", [0, 2]), ("node:1", [1, 1])):
        wanted = Wanted("dragonfly:1x4", servers=4, attention=attention, weighted=False)
        data = prepare(put_on_graph(old, wanted), "topology").topology
        assert data is not None
        assert data.dispatch.ravel().tolist() == dispatch
        assert data.collect.ravel().tolist() == (
            dispatch[::-1] if attention == "spread" else dispatch
        )
        assert (data.weight == 1).all()
    for attention, words in (("node:4", "servers are 0 to 3"), ("here", "write one of")):
        with pytest.raises(InputError, match=words):
            put_on_graph(old, Wanted("dragonfly:1x4", servers=4, attention=attention))


def test_the_recipe_gives_the_shipped_bytes(tmp_path: Path) -> None:
    made = make("deepseek-topology", None, tmp_path)
    assert len(made) == 12
    for path in [*made, tmp_path / "deepseek-moe-16b_topology.npz"]:
        assert path.read_bytes() == (REAL / path.name).read_bytes()
