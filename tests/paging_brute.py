"""``paging`` by exhaustion: every content of the cache that can be reached, request by request."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

from moeopt.paging.data import PagingData

Evictions = list[tuple[int, int]]


def brute_paging(data: PagingData) -> tuple[float, Evictions]:
    """Least cost, and evictions (request, page) that attain it; ``inf`` if nothing fits.

    Nothing is kept out that there is room for: a page more in the cache never costs anything.
    """
    whole, unit = data.whole_costs()
    requests = data.requests
    best: dict[frozenset[int], tuple[int, Evictions]] = {frozenset(): (0, [])}
    for t in range(len(requests)):
        asked = frozenset(requests.page[requests.ptr[t] : requests.ptr[t + 1]].tolist())
        if len(asked) > data.cache:
            return math.inf, []
        found: dict[frozenset[int], tuple[int, Evictions]] = {}
        for content, (cost, evictions) in best.items():
            paid = cost + sum(whole[page // requests.experts] for page in asked - content)
            others = sorted(content - asked)
            kept = min(len(others), data.cache - len(asked))
            for chosen in combinations(others, kept):
                after = asked | frozenset(chosen)
                if after not in found or paid < found[after][0]:
                    gone = [(t, page) for page in others if page not in chosen]
                    found[after] = (paid, evictions + gone)
        best = found
    cost, evictions = min(best.values(), key=lambda value: value[0])
    return float(Fraction(cost) * unit), evictions
