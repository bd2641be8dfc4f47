"""What must hold between the fields of the block ``topology`` and the rest of an instance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moeopt.files import LINES_OF_A_KIND, limited


def topology_problems(topology: Any, moe: Any, cluster: Any) -> Iterator[str]:
    """Yield one line for each problem; None stands for a part that is absent or unreadable."""
    if topology is None:
        return
    streams = int(topology.dispatch_node.sizes.max(initial=0))
    if not streams:
        yield "topology.dispatch_node: must have at least one node a layer"
    for name in ("dispatch_node", "collect_node"):
        rows = getattr(topology, name)
        if rows is None:
            continue
        path = f"topology.{name}"
        if moe is not None and len(rows) != moe.layers:
            yield f"{path}: has {len(rows)} entries for {moe.layers} layers"
        lines = list(_row_problems(rows.tolist(), path, streams, cluster))
        yield from limited(lines[:LINES_OF_A_KIND], len(lines))
    if topology.share is not None:
        share = topology.share.tolist()
        if len(share) != streams:
            yield f"topology.share: has {len(share)} entries for {streams} streams"
        yield from (
            f"topology.share[{i}]: must not be negative, is {part:g}"
            for i, part in enumerate(share)
            if part < 0
        )
        if share and not any(share):
            yield "topology.share: all entries are 0"


def _row_problems(rows: list[list[int]], path: str, streams: int, cluster: Any) -> Iterator[str]:
    for l, row in enumerate(rows):
        if len(row) != streams:
            yield f"{path}[{l}]: must have {streams} streams, as many as other layers"
        if cluster is not None:
            nodes = len(cluster.nodes)
            for i, node in enumerate(row):
                if not 0 <= node < nodes:
                    yield f"{path}[{l}][{i}]: node {node} does not exist (nodes are 0..{nodes - 1})"
