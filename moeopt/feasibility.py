"""Why no plan can exist: arithmetic on whole bytes, in the user's words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moeopt.problem import IntArray, ProblemData, RequestClasses
from moeopt.units import BYTES_PER_MIB
from moeopt.words import counted


def explain_infeasible(data: ProblemData) -> list[str]:
    """Say in words and MiB why no plan can exist.

    Every line is a proof by counting. An empty list proves nothing: a plan may still not exist.
    """
    if data.paging is not None:
        return list(_cached(data))
    lines = list(_slots(data))
    if data.topology is not None:
        lines += _places(data)
    if data.problem == "balance":
        return [*lines, *_filled(data), *_moves(data)]
    if data.problem == "affinity":
        return [*lines, *_divided(data)]
    if data.free_mib is None:
        return lines
    negative = [
        f"GPU {g}: reserved and dense memory exceed the GPU's by {-free:,.6g} MiB"
        for g, free in enumerate(data.free_mib.tolist())
        if free < 0
    ]
    if negative:
        return lines + negative
    experts = list(_experts(data))
    if not experts and data.requests is not None:
        experts = list(_requests(data, data.requests))
    return lines + experts


def _cached(data: ProblemData) -> Iterator[str]:
    """Experts that are asked for at once must be in the cache at once, and the cache in memory."""
    paging = data.paging
    if paging is None:
        return
    if paging.requests.widest > paging.cache:
        t = int(paging.requests.sizes.argmax())
        yield (
            f"request {t} asks for {paging.requests.widest} experts at once, the cache holds "
            f"{paging.cache}"
        )
    if data.free_mib is not None:
        needed, room = paging.cache * _bytes(data.expert_mib), int(_free_bytes(data)[0])
        if needed > room:
            yield (
                f"a cache of {paging.cache} experts × {data.expert_mib:,.6g} MiB needs "
                f"{_mib(needed)} MiB, {_mib(room)} are free after reserved and dense"
            )


def _slots(data: ProblemData) -> Iterator[str]:
    if data.slots is not None and data.slots * data.gpus < data.experts:
        slots = data.slots * data.gpus
        yield (
            f"{data.gpus} GPUs × {data.slots} slots are {slots:,} slots a layer, but a layer has "
            f"{data.experts:,} experts: {data.experts - slots:,} slots too few in each layer"
        )


def _places(data: ProblemData) -> Iterator[str]:
    """Places of the servers for a layer, and for all layers."""
    topology = data.topology
    assert topology is not None
    for needed, places, what in (
        (data.experts, topology.capacity_per_layer, "experts in each layer"),
        (data.layers * data.experts, topology.capacity, "experts in all layers"),
    ):
        room = int(places.sum())
        if room < needed:
            yield (
                f"{len(places)} servers have room for {room:,} {what}, there are {needed:,}: "
                f"{needed - room:,} too many"
            )


def _filled(data: ProblemData) -> Iterator[str]:
    """Every slot of ``balance`` is filled: too many of them are as bad as too few."""
    if data.slots is None:
        return
    if data.slots > data.experts:
        yield (
            f"{data.slots:,} slots on a GPU, all of them filled, but a layer has {data.experts:,} "
            "experts: one of them would be there twice"
        )
    needed = data.layers * data.slots * _bytes(data.expert_mib)
    free = [] if data.free_mib is None else _free_bytes(data).tolist()
    for g, room in enumerate(free):
        if needed > room:
            yield (
                f"GPU {g}: {data.layers} layers × {data.slots} slots × {data.expert_mib:,.6g} MiB "
                f"are {_mib(needed)} MiB, {_mib(room)} are free after reserved and dense"
            )


def _divided(data: ProblemData) -> Iterator[str]:
    """Every GPU of ``affinity`` hosts equally many experts of a layer, one copy of each."""
    if data.experts % data.gpus:
        yield f"{data.experts} experts of a layer cannot be divided equally among {data.gpus} GPUs"
        return
    held = data.layers * data.experts // data.gpus
    needed = held * _bytes(data.expert_mib)
    for g, room in enumerate([] if data.free_mib is None else _free_bytes(data).tolist()):
        if needed > room:
            yield (
                f"GPU {g}: {held:,} experts × {data.expert_mib:,.6g} MiB are {_mib(needed)} MiB, "
                f"{_mib(room)} are free after reserved and dense"
            )
    affinity = data.affinity
    if affinity is None:
        return
    for l, e in np.argwhere(affinity.load > affinity.most_load[:, None]).tolist():
        yield (
            f"layer {l}, expert {e}: {affinity.load[l, e]:,.6g} tokens, no GPU may have more than "
            f"{affinity.most_load[l]:,.6g}"
        )


def _moves(data: ProblemData) -> Iterator[str]:
    """A slot that is empty takes a copy that was not there; so does an expert that is nowhere."""
    balance = data.balance
    if balance is None or balance.previous is None or balance.most_moves is None:
        return
    needed = 0
    for row in balance.previous:
        held = row[row >= 0]
        needed += max(len(row) - len(held), balance.experts - len(np.unique(held)))
    if needed > balance.most_moves:
        copies = counted(needed, "copy", "copies")
        yield (
            f"the plan in use has empty slots or lacks experts: at least {copies} must move, "
            f"{balance.most_moves:,} may"
        )


def _experts(data: ProblemData) -> Iterator[str]:
    free, size = _free_bytes(data), _bytes(data.expert_mib)
    copies = data.layers * data.experts
    all_of_them = f"{data.layers} layers × {data.experts} experts × {data.expert_mib:,.6g} MiB"
    needed, offered = copies * size, int(free.sum())
    if size > free.max():
        yield (
            f"one expert needs {data.expert_mib:,.6g} MiB, no GPU has more than "
            f"{_mib(free.max())} MiB free after reserved and dense"
        )
    elif needed > offered:
        yield (
            f"experts need {_mib(needed)} MiB in all ({all_of_them}), GPUs have {_mib(offered)} "
            f"MiB free after reserved and dense: {_mib(needed - offered)} MiB are missing"
        )
    elif (room := int(_rooms(data).sum())) < copies:
        limit = "" if data.slots is None else " and its slots"
        yield (
            f"whole experts: with {data.expert_mib:,.6g} MiB each, the GPUs' free memory{limit} "
            f"hold {room:,} experts, but there are {copies:,} ({all_of_them}): "
            f"{copies - room:,} too many"
        )


def _requests(data: ProblemData, requests: RequestClasses) -> Iterator[str]:
    free, size = _free_bytes(data), _bytes(data.expert_mib)
    copies = data.layers * data.experts
    rooms = _rooms(data)
    # Experts that must be on GPU g even where all the other GPUs hold as many as they can.
    forced = np.maximum(0, copies - (rooms.sum() - rooms))
    beside = free - forced * size
    kv = np.rint(requests.kv_mib * BYTES_PER_MIB).astype(np.int64)
    for c in np.flatnonzero(kv > beside.max()).tolist():
        g = int(beside.argmax())
        yield (
            f"one request of class {requests.names[c]!r} needs {_mib(kv[c])} MiB of KV cache, no "
            f"GPU has more than {_mib(beside.max())} MiB for it (GPU {g}: {_mib(free[g])} MiB "
            f"free, of which experts take at least {_mib(forced[g] * size)} MiB)"
        )
    yield from _too_many_large(data, requests, kv)
    if data.wave_steps is not None:
        longest = max(data.wave_steps)
        for c in np.flatnonzero(requests.output_tokens > longest).tolist():
            yield (
                f"class {requests.names[c]!r} decodes {requests.output_tokens[c]:,} tokens, the "
                f"longest wave has {longest:,} steps"
            )
    room = int(free.sum()) - copies * size
    if data.wave_requests is not None:
        yield from _prescribed(data, requests, data.wave_requests, room)
    for length in np.unique(requests.output_tokens)[::-1].tolist():
        line = _too_much_kv(data, requests, kv, room, length)
        if line:
            yield line
            return


def _prescribed(
    data: ProblemData, requests: RequestClasses, counts: IntArray, room: int
) -> Iterator[str]:
    """Each prescribed wave alone: its requests' cache and their lengths."""
    kv = np.rint(requests.kv_mib * BYTES_PER_MIB).astype(np.int64)
    for w, needed in enumerate((kv @ counts).tolist()):
        if needed > room:
            yield (
                f"the requests prescribed for wave {w} need {_mib(needed)} MiB of KV cache, "
                f"{_mib(room)} MiB are free beside one copy of every expert"
            )
    for w, steps in enumerate(data.wave_steps or ()):
        for c in np.flatnonzero((counts[:, w] > 0) & (requests.output_tokens > steps)).tolist():
            yield (
                f"class {requests.names[c]!r} is prescribed for wave {w} and decodes "
                f"{requests.output_tokens[c]:,} tokens, the wave has {steps:,} steps"
            )


def _too_many_large(data: ProblemData, requests: RequestClasses, kv: IntArray) -> Iterator[str]:
    """Count the whole requests of a size that the GPUs hold, even without any expert."""
    for size in np.unique(kv[kv > 0])[::-1].tolist():
        large = int(requests.count[kv >= size].sum())
        places = data.waves * int((_free_bytes(data) // size).sum())
        if large > places:
            yield (
                f"{large:,} requests need {_mib(size)} MiB of KV cache or more each, the GPUs' "
                f"free memory holds {places:,} of them in {_waves(data.waves)}"
            )
            return


def _too_much_kv(
    data: ProblemData, requests: RequestClasses, kv: IntArray, room: int, length: int
) -> str | None:
    """Compare the KV cache of requests of ``length`` tokens and more with their waves' room."""
    steps = data.wave_steps
    waves = data.waves if steps is None else sum(step >= length for step in steps)
    chosen = requests.output_tokens >= length
    if steps is None and not chosen.all():
        return None  # any wave may be long: only all requests together can be too many
    needed = int(requests.count[chosen] @ kv[chosen])
    # Without any room each class has its line; without a wave of this length too.
    if waves == 0 or room == 0 or needed <= waves * room:
        return None
    who = "requests" if chosen.all() else f"requests of {length:,} output tokens and more"
    missing = -(-needed // room) - waves
    long_enough = "" if steps is None else f" of {length:,} steps and more"
    return (
        f"{who} need {_mib(needed)} MiB of KV cache, {_waves(waves)}{long_enough} "
        f"{'has' if waves == 1 else 'have'} {waves} × {_mib(room)} MiB beside one copy of every "
        f"expert: {_waves(missing)} more at least"
    )


def _waves(waves: int) -> str:
    return counted(waves, "wave", "waves")


def _rooms(data: ProblemData) -> IntArray:
    """Most distinct experts of all layers that each GPU can hold, shape (G,)."""
    by_memory = _free_bytes(data) // _bytes(data.expert_mib)
    a_layer = data.experts if data.slots is None else min(data.slots, data.experts)
    return np.minimum(by_memory, data.layers * a_layer)


def _free_bytes(data: ProblemData) -> IntArray:
    if data.free_mib is None:
        raise ValueError("memory is not limited")
    return np.rint(data.free_mib * BYTES_PER_MIB).astype(np.int64)


def _bytes(size_mib: float) -> int:
    return round(size_mib * BYTES_PER_MIB)


def _mib(size: int) -> str:
    return f"{size / BYTES_PER_MIB:,.6f}".rstrip("0").rstrip(".")
