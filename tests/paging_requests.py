"""Small random requests for experts."""

from __future__ import annotations

import numpy as np

from moeopt.paging.requests import Requests, requests_of_lists


def random_requests(seed: int) -> tuple[Requests, int]:
    """Requests of one to three experts of one to three layers, and a cache that holds them."""
    rng = np.random.default_rng(seed)
    layers, experts = [(1, 4), (2, 3), (3, 3), (2, 4)][seed % 4]
    count = int(rng.integers(3, 14))
    rows = [
        rng.choice(experts, int(rng.integers(1, 2 + seed % 3)), replace=False).tolist()
        for _ in range(count)
    ]
    made = requests_of_lists(layers, experts, rows)
    return made, int(rng.integers(made.widest, max(made.widest + 1, made.pages)))


CASES = [random_requests(seed) for seed in range(80)]
