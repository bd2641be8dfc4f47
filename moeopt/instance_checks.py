"""What must hold between the fields of an instance, checked on whole arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.arrays import Rows
from moeopt.files import LINES_OF_A_KIND, limited
from moeopt.instance_checks_topology import topology_problems
from moeopt.instance_limits import size_problems

#: Rows of ``usage`` sum to top_k, and shares to 1, within this.
SUM_TOLERANCE = 1e-6

Array = npt.NDArray[Any]


def instance_problems(parts: Any) -> list[str]:
    """List all problems, each line starting with its JSON path; where sizes are absurd, these only.

    Parameters
    ----------
    parts : Instance
        Or any object with its attributes, where None stands for a part that could not be read.
    """
    if lines := size_problems(parts):
        return lines  # the other checks make arrays of the sizes that the file claims
    return [
        *_moe(parts.moe),
        *_cluster(parts.cluster, parts.moe),
        *_layer_time(parts.layer_time),
        *_routing(parts.routing, parts.moe),
        *_requests(parts.requests, parts.moe),
        *_joint(parts.joint, parts.requests),
        *_balance(parts.balance, parts.moe, parts.cluster),
        *topology_problems(parts.topology, parts.moe, parts.cluster),
        *_paging(parts.paging, parts.moe),
        *_activation(parts.activation, parts.moe, parts.cluster),
    ]


def _moe(moe: Any) -> Iterator[str]:
    if moe is None:
        return
    if moe.top_k > moe.experts:
        yield f"moe.top_k: {moe.top_k} is more than the {moe.experts} experts of a layer"
    if moe.experts % moe.expert_groups:
        yield f"moe.expert_groups: {moe.expert_groups} does not divide {moe.experts} experts"
    if moe.layers_total is not None and moe.layers_total < moe.layers:
        yield f"moe.layers_total: {moe.layers_total} is less than moe.layers, {moe.layers}"


def _cluster(cluster: Any, moe: Any) -> Iterator[str]:
    if cluster is None:
        return
    missing = [n for n, node in enumerate(cluster.nodes) if node.memory_mib is None]
    if len(missing) == len(cluster.nodes):
        if cluster.slots_per_gpu is None:
            yield "cluster: needs slots_per_gpu, or memory_mib in every node"
    else:
        for n in missing:
            yield f"cluster.nodes[{n}].memory_mib: missing, but other nodes have it"
        if moe is not None and moe.dense_mib is None:
            yield "moe.dense_mib: missing, but cluster.nodes give memory_mib"
    dense_mib = 0.0 if moe is None or moe.dense_mib is None else moe.dense_mib
    for n, node in enumerate(cluster.nodes):
        if node.memory_mib is not None and node.reserved_mib + dense_mib > node.memory_mib:
            yield (
                f"cluster.nodes[{n}]: reserved_mib {node.reserved_mib:,g} and dense_mib "
                f"{dense_mib:,g} are more than memory_mib {node.memory_mib:,g}"
            )
        if node.kv_mib is not None and node.memory_mib is None:
            yield f"cluster.nodes[{n}].kv_mib: needs memory_mib"
    if cluster.hops is not None:
        yield from _hops(cluster.hops, len(cluster.nodes))


def _hops(hops: Array, nodes: int) -> Iterator[str]:
    if hops.shape != (nodes, nodes):
        rows, columns = hops.shape
        yield f"cluster.hops: is {rows} × {columns}, but there are {nodes} nodes"
        return
    yield from _where(hops < 0, "cluster.hops", lambda i, j: "must not be negative")
    inside = np.diag(np.diag(hops) != 0)
    yield from _where(inside, "cluster.hops", lambda i, j: "must be 0 inside a node")


def _layer_time(spec: Any) -> Iterator[str]:
    if spec is None:
        return
    unused = {"sum": ["token_base_us"], "p2": ["token_base_us"], "max": []}.get(
        spec.form, ["base_us", "expert_us", "token_base_us", "token_us"]
    )
    for name in unused:
        if getattr(spec, name):
            yield f"layer_time.{name}: is not used by the form {spec.form}"
    if spec.form != "unit" and not (spec.expert_us or spec.token_us):
        yield f"layer_time: the form {spec.form} needs expert_us or token_us above 0"


def _routing(routing: Any, moe: Any) -> Iterator[str]:
    if routing is None:
        return
    if moe is not None and len(routing) != moe.layers:
        yield f"routing: has {len(routing)} layers, but moe.layers is {moe.layers}"
    first: dict[int, int] = {}
    for i, routed in enumerate(routing):
        if routed is None:
            continue
        path = f"routing[{i}]"
        if routed.layer in first:
            yield f"{path}.layer: {routed.layer} is also routing[{first[routed.layer]}].layer"
        first.setdefault(routed.layer, i)
        if routed.scenarios is None and routed.load is None:
            yield f"{path}: needs scenarios or load"
        experts = None if moe is None else moe.experts
        if routed.scenarios is not None:
            yield from _scenarios(routed.scenarios, experts, f"{path}.scenarios")
        if routed.load is not None:
            yield from _load(routed.load, experts, f"{path}.load")
        if routed.next is not None:
            yield from _next(routed.next, experts, f"{path}.next")


def _scenarios(scenarios: Any, experts: int | None, path: str) -> Iterator[str]:
    rows: Rows = scenarios.experts
    if not len(rows):
        yield f"{path}.experts: must have at least one scenario"
    yield from _where(rows.sizes == 0, f"{path}.experts", lambda s: "has no experts")
    if experts is not None:
        outside = (rows.values < 0) | (rows.values >= experts)
        yield from _where_rows(
            outside,
            rows,
            f"{path}.experts",
            lambda e: f"expert {e} does not exist (experts are 0..{experts - 1})",
        )
    yield from _repeated(rows, f"{path}.experts")
    if len(scenarios.weight) != len(rows):
        yield f"{path}.weight: has {len(scenarios.weight)} entries for {len(rows)} scenarios"
    yield from _weights(scenarios.weight, f"{path}.weight")
    if scenarios.tokens is not None:
        yield from _tokens(scenarios.tokens, rows, f"{path}.tokens")


def _repeated(rows: Rows, path: str, what: str = "expert") -> Iterator[str]:
    order = np.lexsort((rows.values, rows.row))
    row, value = rows.row[order], rows.values[order]
    same = np.flatnonzero((row[1:] == row[:-1]) & (value[1:] == value[:-1]))
    found = list(dict.fromkeys(zip(row[same].tolist(), value[same].tolist(), strict=True)))
    lines = [f"{path}[{s}]: {what} {e} appears more than once" for s, e in found[:LINES_OF_A_KIND]]
    yield from limited(lines, len(found))


def _tokens(tokens: Rows, rows: Rows, path: str) -> Iterator[str]:
    if len(tokens) != len(rows):
        yield f"{path}: has {len(tokens)} entries for {len(rows)} scenarios"
    elif not np.array_equal(tokens.ptr, rows.ptr):
        have, want = tokens.sizes, rows.sizes
        differ = have != want
        yield from _where(differ, path, lambda s: f"has {have[s]} entries for {want[s]} experts")
    yield from _where_rows(
        tokens.values < 1, tokens, path, lambda n: f"must be at least 1, not {n}"
    )


def _load(load: Array, experts: int | None, path: str) -> Iterator[str]:
    if experts is not None and len(load) != experts:
        yield f"{path}: has {len(load)} entries for {experts} experts"
    yield from _weights(load, path)


def _weights(weight: Array, path: str) -> Iterator[str]:
    yield from _where(weight < 0, path, lambda i: f"must not be negative, is {weight[i]:g}")
    if len(weight) and not weight.any():
        yield f"{path}: all entries are 0"


def _next(rows: Array, experts: int | None, path: str) -> Iterator[str]:
    pairs, tokens = rows[:, :2], rows[:, 2]
    if experts is not None:
        outside = (pairs < 0) | (pairs >= experts) | (pairs != np.floor(pairs))
        yield from _where(
            outside,
            path,
            lambda i, j: f"expert {pairs[i, j]:g} does not exist (experts are 0..{experts - 1})",
        )
    yield from _where(tokens < 0, path, lambda i: f"tokens must not be negative, is {tokens[i]:g}")


def _requests(requests: Any, moe: Any) -> Iterator[str]:
    classes = [(c, r) for c, r in enumerate(requests or ()) if r is not None]
    counts = Counter(r.name for _, r in classes)
    for c, r in classes:
        if counts[r.name] > 1:
            yield f"requests[{c}].name: {r.name!r} is used {counts[r.name]} times"
        if r.usage is not None and moe is not None:
            yield from _usage(r.usage, moe, f"requests[{c}].usage")


def _usage(usage: Array, moe: Any, path: str) -> Iterator[str]:
    if usage.shape != (moe.layers, moe.experts):
        yield _not_layers_of_experts(path, usage.shape, moe)
        return
    yield from _where(usage < 0, path, lambda i, j: f"must not be negative, is {usage[i, j]:g}")
    sums = usage.sum(axis=1)
    yield from _where(
        np.abs(sums - moe.top_k) > SUM_TOLERANCE,
        path,
        lambda i: f"sums to {sums[i]:.9g}, not to top_k = {moe.top_k}",
    )


def _joint(joint: Any, requests: Any) -> Iterator[str]:
    if joint is None:
        return
    if joint.waves and joint.wave_steps and len(joint.wave_steps) != joint.waves:
        yield f"joint.wave_steps: has {len(joint.wave_steps)} entries for {joint.waves} waves"
    if joint.wave_requests is not None:
        yield from _wave_requests(joint, requests)
    if joint.share is None:
        return
    if requests is not None and None not in requests:
        names = {r.name for r in requests}
        for name in joint.share.keys() - names:
            yield f"joint.share.{name}: there is no such request class"
    total = sum(joint.share.values())
    if abs(total - 1) > SUM_TOLERANCE:
        yield f"joint.share: sums to {total:.9g}, not to 1"


def _wave_requests(joint: Any, requests: Any) -> Iterator[str]:
    path, waves = "joint.wave_requests", joint.wave_requests
    expected = joint.waves or len(joint.wave_steps or waves)
    if len(waves) != expected:
        yield f"{path}: has {len(waves)} entries for {expected} waves"
    if requests is None or None in requests:
        return
    counts = {r.name: r.count for r in requests}
    for w, wave in enumerate(waves):
        for name in wave.keys() - counts.keys():
            yield f"{path}[{w}].{name}: there is no such request class"
    for name, count in counts.items():
        in_waves = sum(wave.get(name, 0) for wave in waves)
        if in_waves != count:
            yield f"{path}: {in_waves} requests of class {name!r} in all, its count is {count}"


def _balance(balance: Any, moe: Any, cluster: Any) -> Iterator[str]:
    if balance is None:
        return
    if balance.max_moves is not None and balance.previous is None:
        yield "balance.max_moves: needs balance.previous, the plan in use"
    if moe is None:
        return
    for w, window in enumerate(balance.windows or ()):
        path = f"balance.windows[{w}]"
        if window.shape != (moe.layers, moe.experts):
            yield _not_layers_of_experts(path, window.shape, moe)
        else:
            yield from _where(
                window < 0,
                path,
                lambda i, j, window=window: f"must not be negative, is {window[i, j]:g}",
            )
    if balance.previous is not None and len(balance.previous) != moe.layers:
        yield f"balance.previous: has {len(balance.previous)} layers, not {moe.layers}"
    if cluster is None:
        return
    for l, rows in enumerate(balance.previous or ()):
        yield from _held(rows, moe, cluster, f"balance.previous[{l}]")
    if balance.groups_on_nodes:
        yield from _groups_on_nodes(moe, cluster)


def _paging(paging: Any, moe: Any) -> Iterator[str]:
    if paging is None:
        return
    if (paging.requests is None) == (paging.trace is None):
        yield "paging: needs either requests or trace"
    for name in ("sequences", "batch"):
        if paging.trace is None and getattr(paging, name) is not None:
            yield f"paging.{name}: belongs to a trace"
    if paging.load_us is not None and paging.load_gb_s is not None:
        yield "paging: load_us and load_gb_s say the same thing twice"
    if paging.load_us is not None:
        if moe is not None and len(paging.load_us) not in (1, moe.layers):
            yield f"paging.load_us: has {len(paging.load_us)} entries, needs 1 or {moe.layers}"
        low = paging.load_us <= 0
        yield from _where(low, "paging.load_us", lambda l: "must be positive")
    if paging.requests is not None:
        rows, path = paging.requests, "paging.requests"
        if not len(rows):
            yield f"{path}: must have at least one request"
        yield from _where(rows.sizes == 0, path, lambda t: "has no experts")
        if moe is not None:
            outside = (rows.values < 0) | (rows.values >= moe.experts)
            yield from _where_rows(
                outside,
                rows,
                path,
                lambda e: f"expert {e} does not exist (experts are 0..{moe.experts - 1})",
            )
        yield from _repeated(rows, path)


def _held(rows: Rows, moe: Any, cluster: Any, path: str) -> Iterator[str]:
    if len(rows) != moe.experts:
        yield f"{path}: has {len(rows)} entries for {moe.experts} experts"
    outside = (rows.values < 0) | (rows.values >= cluster.gpus)
    yield from _where_rows(
        outside,
        rows,
        path,
        lambda g: f"GPU {g} does not exist (GPUs are 0..{cluster.gpus - 1})",
    )
    yield from _repeated(rows, path, "GPU")
    if cluster.slots_per_gpu is not None and not outside.any():
        held = np.bincount(rows.values, minlength=cluster.gpus)
        full = np.flatnonzero(held > cluster.slots_per_gpu).tolist()
        lines = [
            f"{path}: GPU {g} holds {held[g]} experts, it has {cluster.slots_per_gpu} slots"
            for g in full
        ]
        yield from limited(lines[:LINES_OF_A_KIND], len(full))


def _groups_on_nodes(moe: Any, cluster: Any) -> Iterator[str]:
    path, nodes, slots = "balance.groups_on_nodes", len(cluster.nodes), cluster.slots_per_gpu
    if len({node.gpus for node in cluster.nodes}) > 1:
        yield f"{path}: needs equally many GPUs in every node"
    if moe.expert_groups % nodes:
        yield f"{path}: {moe.expert_groups} groups cannot be divided equally among {nodes} nodes"
    elif slots is not None and slots > moe.experts // nodes:
        yield f"{path}: a GPU has {slots} slots, its node {moe.experts // nodes} experts"


def _activation(activation: Any, moe: Any, cluster: Any) -> Iterator[str]:
    if activation is None or moe is None:
        return
    mass, path = activation.gate_mass, "activation.gate_mass"
    if mass.shape != (moe.layers, moe.top_k):
        rows, columns = mass.shape
        yield f"{path}: is {rows} × {columns}, but there are {moe.layers} layers, top-{moe.top_k}"
    else:
        yield from _where(mass < 0, path, lambda i, j: f"must not be negative, is {mass[i, j]:g}")
        yield from _where(np.diff(mass) > 0, path, lambda i, j: "the heaviest rank comes first")
        yield from _where(~(mass > 0).any(axis=1), path, lambda i: "all entries are 0")
    path = "activation.scenarios"
    if len(activation.scenarios) != moe.layers:
        yield f"{path}: has {len(activation.scenarios)} layers, not {moe.layers}"
    for l, layer in enumerate(activation.scenarios):
        if len(layer) != moe.top_k:
            yield f"{path}[{l}]: has {len(layer)} entries, but top_k is {moe.top_k}"
        for j, scenarios in enumerate(layer):
            yield from _scenarios(scenarios, moe.experts, f"{path}[{l}][{j}]")
    if activation.hosts is not None and len(activation.hosts) != moe.layers:
        yield f"activation.hosts: has {len(activation.hosts)} layers, not {moe.layers}"
    for l, rows in enumerate(activation.hosts or ()):
        path = f"activation.hosts[{l}]"
        if cluster is not None:
            yield from _held(rows, moe, cluster, path)
        sizes = rows.sizes
        yield from _where(sizes != 1, path, lambda e, sizes=sizes: f"{sizes[e]} GPUs, not one")


def _not_layers_of_experts(path: str, shape: tuple[int, ...], moe: Any) -> str:
    rows, columns = shape
    return (
        f"{path}: is {rows} × {columns}, but there are {moe.layers} layers of {moe.experts} experts"
    )


def _where(bad: Array, path: str, words: Callable[..., str]) -> Iterator[str]:
    """One line for each true entry of ``bad``; ``words`` takes its indices."""
    if not bad.any():
        return
    places = np.argwhere(bad)
    lines = [
        path + "".join(f"[{i}]" for i in place) + ": " + words(*place)
        for place in places[:LINES_OF_A_KIND].tolist()
    ]
    yield from limited(lines, len(places))


def _where_rows(bad: Array, rows: Rows, path: str, words: Callable[[int], str]) -> Iterator[str]:
    """One line for each true entry of ``bad``, given per value of ``rows``."""
    found = np.flatnonzero(bad)
    lines = []
    for i in found[:LINES_OF_A_KIND].tolist():
        row = int(np.searchsorted(rows.ptr, i, side="right")) - 1
        lines.append(f"{path}[{row}][{i - rows.ptr[row]}]: {words(rows.values[i])}")
    yield from limited(lines, len(found))
