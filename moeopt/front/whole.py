"""A layer bound from whole activations: where every GPU has just as many experts as it must.

Let E charged experts be q for each of G GPUs, E = q·G. Every plan either charges some GPU at least
q + 1 replicas, which takes f(q + 1, 0) at least; or every GPU exactly q, and then nobody is split:
the plan deals out whole experts, q to a GPU. Of the jG + 1 heaviest some GPU has j + 1, at least
the lightest of these, and q − j − 1 others, at least the lightest of all. So the layer takes::

    min( f(q + 1, 0),  f(q, max_j (those tokens)) )

with any number of replicas. It does not decrease in the tokens, and S times it, for tokens / S, not
in S.
"""

from __future__ import annotations

import numpy as np

from moeopt.problem import FloatArray, IntArray, LayerTime


def whole_bound(time: LayerTime, tokens: FloatArray, charged: IntArray, gpus: int) -> float:
    """Bound the time of a layer, any replicas allowed; 0 where experts are not a multiple of GPUs.

    Parameters
    ----------
    tokens : float array, shape (E,)
    charged : int array, shape (E,)
        1 for each expert of which surely a replica is charged.
    """
    heavy = -np.sort(-tokens[charged > 0])
    each, more = divmod(len(heavy), gpus)
    if more or not each:
        return 0.0
    before = np.concatenate(([0.0], np.cumsum(heavy)))
    j = np.arange(each)
    together = before[j * gpus + 1] - before[j * (gpus - 1)]
    others = before[-1] - before[len(heavy) - (each - 1 - j)]
    most = float((together + others).max())
    return float(min(time.of(each + 1, 0.0), time.of(each, most)))
