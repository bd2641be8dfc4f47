"""Advice in one sentence."""

from __future__ import annotations

import math

from moeopt.advise.advice import Advice, Windows
from moeopt.words import counted

#: A smaller share of the fullest GPUs' tokens is not worth a change.
LEAST_GAIN = 0.02


def is_worth_it(advice: Advice, least_gain: float = LEAST_GAIN) -> bool:
    """Whether the map of moeopt saves at least this share of the fullest GPUs' tokens."""
    return advice.gain >= least_gain


def sentence(advice: Advice, least_gain: float = LEAST_GAIN) -> str:
    """Return the answer and its reason: what is saved, at what price, and what is proved."""
    where = _windows(advice.scored)
    if is_worth_it(advice, least_gain):
        return (
            f"worth it, because in {where} the fullest GPU has {_below(advice.gain)} fewer tokens "
            f"than today (no map saves more than {_above(advice.most_gain)}){_published(advice)}; "
            f"{_price(advice)}"
        )
    if advice.most_gain < least_gain:
        return (
            f"not worth it, because in {where} no map can save more than "
            f"{_above(advice.most_gain)} of the tokens of the fullest GPU (proved)"
        )
    return (
        f"not worth it, because a map made for {_windows(advice.fitted)} saves only "
        f"{_below(advice.gain)} of the fullest GPU's tokens in {where}"
        f"{_published(advice)}, where at most {_above(advice.most_gain)} can be saved"
    )


def _published(advice: Advice) -> str:
    if advice.published_gain is None:
        return ""
    return f", with the published heuristic {_below(advice.published_gain)}"


def _price(advice: Advice) -> str:
    memory = advice.memory
    assert advice.moeopt.moves is not None  # only the map in use has none
    parts = [counted(advice.moeopt.moves, "copy moves", "copies move")]
    redundant = counted(memory.redundant_experts, "redundant expert", "redundant experts")
    if memory.redundant_experts == 0:
        parts.append("no memory is needed")
    elif memory.redundant_mib is None:
        there = "is" if memory.redundant_experts == 1 else "are"
        parts.append(f"there {there} {redundant}")
    else:
        kv = "" if memory.kv_tokens is None else f", the KV cache of {memory.kv_tokens:,} tokens"
        take = "takes" if memory.redundant_experts == 1 else "take"
        parts.append(f"{redundant} {take} {memory.redundant_mib:,.0f} MiB{kv}")
    return " and ".join(parts)


def _windows(windows: Windows) -> str:
    first, end = windows
    return f"window {first}" if end == first + 1 else f"windows {first} to {end - 1}"


def _below(share: float) -> str:
    """Percent, rounded down: savings are not overstated."""
    return f"{math.floor(1000 * share) / 10:.1f} %"


def _above(share: float) -> str:
    """Percent, rounded up: so is what is proved impossible."""
    return f"{math.ceil(1000 * share) / 10:.1f} %"
