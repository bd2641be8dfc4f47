"""A placement under one batch: the best dispatch and its bound beside the rules of servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.batch_dispatch.check import check_dispatch
from moeopt.batch_dispatch.data import layer_batch, whole_counts
from moeopt.batch_dispatch.rules import RULES, balancedness, rule_time, spread_evenly
from moeopt.batch_dispatch.solve import DispatchOutcome, dispatch_batch
from moeopt.errors import InputError, MoeoptError
from moeopt.problem import IntArray, LayerTime


@dataclass(frozen=True)
class Dispatched:
    """One layer: the best dispatch found, and what each rule makes of the same tokens.

    Attributes
    ----------
    best : DispatchOutcome
        Its time is the checker's.
    balancedness : float
        Mean tokens of a GPU over the largest, of the best dispatch.
    rules : dict
        Rule -> (time, balancedness).
    """

    best: DispatchOutcome
    balancedness: float
    rules: dict[str, tuple[float, float]]


def compare_rules(
    hosts: npt.NDArray[np.bool_],
    counts: npt.ArrayLike,
    layer_time: LayerTime,
    nodes: IntArray,
    rules: Sequence[str] = tuple(RULES),
    *,
    seed: int = 0,
) -> list[Dispatched]:
    """Dispatch one batch, layer by layer.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G)
    counts : int array, shape (L, E) or, by source GPU, (L, G, E)
        Tokens of each expert. Without sources every GPU is the source of equally many.
    layer_time : LayerTime
    nodes : int array, shape (G,)
        Node of each GPU.
    rules : sequence of str
        Names in :data:`RULES <moeopt.batch_dispatch.rules.RULES>`.
    seed : int
        Of the search and of the rules that choose at random.

    Raises
    ------
    InputError
        An unknown rule, or counts that do not fit the placement.
    """
    layers, experts, gpus = hosts.shape
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise InputError(
            [f"rule {rule!r} is unknown (known: {', '.join(RULES)})" for rule in unknown]
        )
    whole = whole_counts(counts, experts)
    if whole.shape not in ((layers, experts), (layers, gpus, experts)):
        raise InputError(
            f"counts: shape {whole.shape}, {(layers, experts)} or by source GPU "
            f"{(layers, gpus, experts)} is needed"
        )
    found = []
    for l in range(layers):
        by_source = whole[l] if whole.ndim == 3 else spread_evenly(whole[l], gpus)
        tokens = by_source.sum(axis=0)
        best = dispatch_batch(layer_batch(hosts[l], tokens, layer_time), seed=seed)
        time, violations = check_dispatch(hosts[l], tokens, layer_time, best.assignment)
        if violations or time != best.time:
            raise MoeoptError([f"layer {l}: the dispatch is refused: {time!r}", *violations])
        sent = np.zeros((experts, gpus), dtype=np.int64)
        for e, g, n in best.assignment:
            sent[e, g] = n
        ruled = {rule: RULES[rule](hosts[l], by_source, nodes, seed) for rule in rules}
        found.append(
            Dispatched(
                best,
                balancedness(sent),
                {name: (rule_time(t, layer_time), balancedness(t)) for name, t in ruled.items()},
            )
        )
    return found
