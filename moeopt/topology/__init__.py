"""The problem ``topology``: experts on servers so that tokens make few hops.

>>> from moeopt.topology import hops_of
>>> hops_of("racks:2x2", 4).tolist()[0]
[0.0, 2.0, 4.0, 4.0]
"""

from moeopt.topology.baselines import BASELINES
from moeopt.topology.data import TopologyData
from moeopt.topology.exact import value_above
from moeopt.topology.flow import best_flow
from moeopt.topology.graphs import hops_of
from moeopt.topology.prices import price_bound
from moeopt.topology.solve import find_plan

__all__ = [
    "BASELINES",
    "TopologyData",
    "best_flow",
    "find_plan",
    "hops_of",
    "price_bound",
    "value_above",
]
