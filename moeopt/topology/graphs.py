"""Cluster graphs and the hops between their servers: links on a shortest path.

A graph is named ``KIND:SIZE``. Switches are vertices like servers; the links inside a server count
nothing. ``dragonfly`` and ``dragonfly-sparse`` follow the drawings of arXiv 2508.09229, where
servers themselves are the vertices; it publishes no lists of links, so how they are attached is
ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from moeopt.errors import InputError
from moeopt.topology.data import FloatArray

Link = tuple[int, int]

#: What the size of each kind means, for people.
KINDS = {
    "fat-tree": "fat-tree:K, three layers of K-port switches, at most K³/4 servers, the first used",
    "dragonfly": "dragonfly:GxA, G racks of A servers, all linked inside, one link a pair of racks",
    "dragonfly-sparse": "dragonfly-sparse:GxA, the same with links between neighbouring racks only",
    "racks": "racks:GxA, G racks of A servers, a switch a rack, one switch above them",
    "hops": "hops:FILE, a square matrix of hops (.csv or .npy)",
    "edges": "edges:FILE, lines FROM TO [HOPS]; servers are 0, 1, …, switches have any names",
}


def hops_of(graph: str, servers: int) -> FloatArray:
    """Return the hops between the servers of a graph, shape (S, S).

    Parameters
    ----------
    graph : str
        ``KIND:SIZE``, see :data:`KINDS`.
    servers : int
        How many the cluster has.

    Raises
    ------
    InputError
        No such graph, a size that does not fit, or servers that are not connected.
    """
    kind, _, size = graph.partition(":")
    if kind not in KINDS or not size:
        raise InputError(
            [f"graph {graph!r}: write one of", *(f"  {text}" for text in KINDS.values())]
        )
    if kind in ("hops", "edges"):
        hops = _read_hops(Path(size)) if kind == "hops" else _read_edges(Path(size), servers)
    else:
        hops = _BUILDERS[kind](graph, size, servers)
    if hops.shape != (servers, servers):
        raise InputError(f"graph {graph}: is of {len(hops)} servers, the cluster has {servers}")
    if np.isinf(hops).any():
        i, j = np.argwhere(np.isinf(hops))[0].tolist()
        raise InputError(f"graph {graph}: no path from server {i} to server {j}")
    return hops


def fat_tree(graph: str, size: str, servers: int) -> FloatArray:
    """Three layers of switches with K ports: K pods of K/2 edge switches with K/2 servers each."""
    ports = _whole(graph, size)
    if ports < 2 or ports % 2:
        raise InputError(f"graph {graph}: switches need an even number of ports")
    half = ports // 2
    most = ports * half * half
    if servers > most:
        raise InputError(f"graph {graph}: has {most} servers, the cluster {servers}")
    edge, above, core = most, most + ports * half, most + 2 * ports * half
    links = [(n, edge + n // half) for n in range(most)]
    for pod in range(ports):
        for i in range(half):
            links += [(edge + pod * half + j, above + pod * half + i) for j in range(half)]
            links += [(above + pod * half + i, core + i * half + j) for j in range(half)]
    return _between(links, core + half * half, servers)


def dragonfly(graph: str, size: str, servers: int) -> FloatArray:
    """Racks of servers that are all linked; every pair of racks has one link."""
    racks, in_rack = _racks(graph, size)
    links = _inside(racks, in_rack)
    links += _across(racks, in_rack, list(combinations(range(racks), 2)))
    return _between(links, racks * in_rack, racks * in_rack)


def dragonfly_sparse(graph: str, size: str, servers: int) -> FloatArray:
    """The same in a ring: a rack is linked with the one before and the one behind it."""
    racks, in_rack = _racks(graph, size)
    ring = {tuple(sorted((r, (r + 1) % racks))) for r in range(racks) if racks > 1}
    links = _inside(racks, in_rack) + _across(racks, in_rack, sorted(ring))  # type: ignore[arg-type]
    return _between(links, racks * in_rack, racks * in_rack)


def racks_of_servers(graph: str, size: str, servers: int) -> FloatArray:
    """A switch for each rack and one above them: 2 hops in a rack, 4 between racks."""
    racks, in_rack = _racks(graph, size)
    servers = racks * in_rack
    links = [(n, servers + n // in_rack) for n in range(servers)]
    links += [(servers + r, servers + racks) for r in range(racks)]
    return _between(links, servers + racks + 1, servers)


_BUILDERS: dict[str, Callable[[str, str, int], FloatArray]] = {
    "fat-tree": fat_tree,
    "dragonfly": dragonfly,
    "dragonfly-sparse": dragonfly_sparse,
    "racks": racks_of_servers,
}


def _inside(racks: int, in_rack: int) -> list[Link]:
    return [
        (r * in_rack + i, r * in_rack + j)
        for r in range(racks)
        for i, j in combinations(range(in_rack), 2)
    ]


def _across(racks: int, in_rack: int, pairs: list[Link]) -> list[Link]:
    """One link a pair; a rack's links are dealt out to its servers in the order of the racks."""
    return [
        (
            r * in_rack + ((t - r - 1) % racks) % in_rack,
            t * in_rack + ((r - t - 1) % racks) % in_rack,
        )
        for r, t in pairs
    ]


def _between(links: list[Link], vertices: int, servers: int) -> FloatArray:
    """Links on the shortest paths between the first vertices."""
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = sparse.csr_array((np.ones(len(ends)), ends.T), shape=(vertices, vertices))
    return _shortest(graph, servers)


def _shortest(graph: sparse.csr_array, servers: int) -> FloatArray:
    found = csgraph.shortest_path(graph, directed=False, indices=np.arange(servers))
    return np.asarray(found[:, :servers], dtype=np.float64)


def _read_hops(path: Path) -> FloatArray:
    try:
        if path.suffix == ".npy":
            hops = np.load(path, allow_pickle=False)
        else:
            hops = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    return np.asarray(hops, dtype=np.float64)


def _read_edges(path: Path, servers: int) -> FloatArray:
    """Shortest paths in a file of links; parallel links count as the shortest of them."""
    number: dict[str, int] = {str(s): s for s in range(servers)}
    best: dict[Link, float] = {}
    for line, (start, end, hops) in _edges(path):
        if not hops > 0 or hops == np.inf:
            raise InputError(f"{path}, line {line}: a link has a positive number of hops")
        ends = (number.setdefault(start, len(number)), number.setdefault(end, len(number)))
        key = (min(ends), max(ends))
        best[key] = min(best.get(key, np.inf), hops)
    starts, targets = (np.array([key[side] for key in best], dtype=np.int64) for side in (0, 1))
    graph = sparse.csr_array(
        (np.array(list(best.values())), (starts, targets)), shape=(len(number), len(number))
    )
    return _shortest(graph, servers)


def _edges(path: Path) -> Iterator[tuple[int, tuple[str, str, float]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            start, end, *rest = words
            (hops,) = rest or ["1"]
            yield number, (start, end, float(hops))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: write FROM TO or FROM TO HOPS") from error


def _racks(graph: str, size: str) -> tuple[int, int]:
    racks, _, in_rack = size.partition("x")
    return _whole(graph, racks), _whole(graph, in_rack)


def _whole(graph: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"graph {graph}: write {KINDS[graph.partition(':')[0]].partition(',')[0]}")
    return int(text)
