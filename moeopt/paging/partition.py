"""A cache divided among the layers: each layer evicts its own pages only.

Equal shares with LRU, as simple systems do it; and the best fixed division with the best evictions
inside each layer (OPT-DIST), which is what no policy with fixed shares can beat.
"""

from __future__ import annotations

import numpy as np

from moeopt.paging.requests import IntArray, Requests
from moeopt.paging.stack import Curve, curve_of

#: What a cache too small for a share of every layer misses: more than any number of uses.
_IMPOSSIBLE = np.iinfo(np.int64).max // 4


def equal_shares(layers: int, cache: int) -> IntArray:
    """Pages of each layer, as equal as possible, the first layers one more; shape (L,)."""
    share, rest = divmod(cache, layers)
    shares: IntArray = np.full(layers, share, dtype=np.int64) + (np.arange(layers) < rest)
    return shares


def layer_curves(requests: Requests, policy: str) -> IntArray:
    """Misses of each layer alone with a share of s experts, shape (L, E + 1).

    A share that is too small for some request of the layer misses more than there are uses.
    """
    curves = np.empty((requests.layers, requests.experts + 1), dtype=np.int64)
    for l in range(requests.layers):
        curve = curve_of(requests.layer(l), policy)
        curves[l] = curve.by_layer[0]
        curves[l, : curve.least] = _IMPOSSIBLE
    return curves


def equal_partition(requests: Requests) -> Curve:
    """LRU inside equal shares (``lru-shares``) under every cache size."""
    curves = layer_curves(requests, "lru")
    by_layer = np.empty((requests.layers, requests.pages + 1), dtype=np.int64)
    for cache in range(requests.pages + 1):
        shares = np.minimum(equal_shares(requests.layers, cache), requests.experts)
        by_layer[:, cache] = curves[np.arange(requests.layers), shares]
    possible = (by_layer < _IMPOSSIBLE).all(axis=0)
    return Curve("lru-shares", int(possible.argmax()), by_layer)


def best_partition(requests: Requests) -> Curve:
    """Best evictions inside the best fixed shares (``opt-shares``) under every cache size.

    Layers share nothing but the size of the cache, so the shares are a knapsack: layer by layer,
    the fewest misses for every size. Exact.
    """
    curves = layer_curves(requests, "opt")
    layers, pages, experts = requests.layers, requests.pages, requests.experts
    sizes = np.arange(pages + 1)
    best = np.zeros((layers + 1, pages + 1), dtype=np.int64)
    chosen = np.zeros((layers, pages + 1), dtype=np.int64)
    for l in range(layers):
        # Rows: share s of layer l; columns: size of the cache of the layers up to l.
        before = sizes[None, :] - np.arange(experts + 1)[:, None]
        value = curves[l][:, None] + best[l][np.maximum(before, 0)]
        value = np.where(before >= 0, np.minimum(value, _IMPOSSIBLE), _IMPOSSIBLE)
        chosen[l] = value.argmin(axis=0)
        best[l + 1] = value.min(axis=0)
    by_layer = np.empty((layers, pages + 1), dtype=np.int64)
    left = sizes.copy()
    for l in range(layers - 1, -1, -1):
        share = chosen[l, left]
        by_layer[l] = curves[l, share]
        left = left - share
    least = int((best[layers] < _IMPOSSIBLE).argmax())
    return Curve("opt-shares", least, by_layer)
