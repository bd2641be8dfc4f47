"""Small layers for the tests of the semidefinite bounds, and all their placements."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
from make_data import random_data

from moeopt.problem import Scenarios


def partitions(experts: int, size: int) -> list[list[tuple[int, ...]]]:
    """Every way to fill GPUs with ``size`` experts each."""

    def split(rest: tuple[int, ...]):
        if not rest:
            yield []
            return
        for mates in combinations(rest[1:], size - 1):
            group = (rest[0], *mates)
            for others in split(tuple(e for e in rest if e not in group)):
                yield [group, *others]

    return list(split(tuple(range(experts))))


def expected_time(scenarios: Scenarios, groups: list[tuple[int, ...]]) -> float:
    total = 0.0
    for s in range(len(scenarios)):
        members = set(scenarios.members(s).tolist())
        total += scenarios.weight[s] * max(len(members & set(g)) for g in groups)
    return total


def layer(rng: np.random.Generator, experts: int, low: int, high: int, gpus: int, slots: int):
    """One layer with scenarios of ``low`` to ``high`` experts."""
    data = random_data(
        "placement",
        rng,
        experts=experts,
        top_k=low,
        max_members=high,
        gpus=gpus,
        scenarios=int(rng.integers(3, 16)),
    )
    return replace(data, slots=slots)


SHAPES = [(2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3)]  # GPUs, experts on each
