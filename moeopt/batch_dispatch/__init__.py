"""The problem ``dispatch``: which replica computes which tokens of one batch.

>>> import numpy as np
>>> from moeopt.batch_dispatch import dispatch_batch, layer_batch
>>> from moeopt.problem import LayerTime
>>> hosts = np.array([[True, True], [True, False], [False, True]])
>>> batch = layer_batch(hosts, [6, 3, 1], LayerTime("sum", token_us=1.0))
>>> dispatch_batch(batch).time
5.0
"""

from moeopt.batch_dispatch.check import check_dispatch
from moeopt.batch_dispatch.data import LayerBatch, layer_batch
from moeopt.batch_dispatch.rules import RULES, balancedness, rule_time, spread_evenly
from moeopt.batch_dispatch.solve import DispatchOutcome, dispatch_batch

__all__ = [
    "RULES",
    "DispatchOutcome",
    "LayerBatch",
    "balancedness",
    "check_dispatch",
    "dispatch_batch",
    "layer_batch",
    "rule_time",
    "spread_evenly",
]
