"""Steady state: as many requests in flight as the KV cache holds, in one wave.

By Little's law a class is in flight in proportion to its rate times its output length.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

#: Share of the memory beside one copy of every expert that the requests' KV cache takes.
FILLED = Fraction(97, 100)

FORMS = ("max", "sum", "p2")


def steady_documents(base: dict[str, Any], name: str, notes: str) -> list[dict[str, Any]]:
    """Make a document for each form of the layer time from one of ``joint`` with classes.

    Parameters
    ----------
    base : dict
        Its requests' counts are rates; everything else stays.
    name : str
        Of the one with the form ``max``; others add the form.
    notes : str
        Added to what the source says.
    """
    counts = in_flight(base)
    requests = [
        {**request, "count": count}
        for request, count in zip(base["requests"], counts, strict=True)
        if count
    ]
    text = (
        f"{base['source']['notes']} {notes}Steady state: {sum(counts):,} requests in flight in one "
        "wave, the most of this mix whose KV cache takes at most 97 % of the memory beside one "
        "copy of every expert; a class is in flight in proportion to its requests times its output "
        "length."
    )
    return [
        {
            **base,
            "name": name if form == FORMS[0] else f"{name}_{form}",
            "source": {**base["source"], "notes": text},
            "layer_time": {**base["layer_time"], "form": form},
            "requests": requests,
            "joint": {"waves": 1},
        }
        for form in FORMS
    ]


def in_flight(document: dict[str, Any]) -> list[int]:
    """Return the requests of each class that are in flight (largest remainders)."""
    moe, requests = document["moe"], document["requests"]
    dense = Fraction(moe["dense_mib"])
    free = sum(
        node["gpus"] * (Fraction(node["memory_mib"]) - Fraction(node["reserved_mib"]) - dense)
        for node in document["cluster"]["nodes"]
    )
    room = FILLED * (free - moe["layers"] * moe["experts"] * Fraction(moe["expert_mib"]))
    per_token = Fraction(moe["kv_kib_per_token"]) / 1024
    caches = [per_token * (r["prompt_tokens"] + r["output_tokens"]) for r in requests]
    weights = [r["count"] * r["output_tokens"] for r in requests]
    low, high = 1, 2
    while _cache(weights, caches, high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = _cache(weights, caches, middle) <= room
        low, high = (middle, high) if fits else (low, middle)
    return _largest_remainders(weights, low)


def _cache(weights: Sequence[int], caches: Sequence[Fraction], total: int) -> Fraction:
    counts = _largest_remainders(weights, total)
    return sum((n * kv for n, kv in zip(counts, caches, strict=True)), Fraction(0))


def _largest_remainders(weights: Sequence[int], total: int) -> list[int]:
    whole = sum(weights)
    counts = [total * w // whole for w in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
