"""Grouping, replication and routing of experts on nodes of GPUs: GRACE-MoE, every step replaceable.

>>> from moeopt.grace import Nodes, Settings, means, run
>>> from moeopt.make.traces_shipped import read_trace
>>> requests = read_trace("gpt-oss-20b").take(range(12))
>>> steps = Settings(nodes=Nodes(2, 2), routings=("grace", "nearest"), batch=64)
>>> [row["routing"] for row in means(list(run(requests, steps)))]
['grace', 'nearest']
"""

from moeopt.grace.data import Batches, Nodes, Plan, Profile, make_batches, profile
from moeopt.grace.grouping import GROUPINGS, group
from moeopt.grace.measure import Traffic, measure
from moeopt.grace.pipeline import Outcome, Settings, make_plan, means, run
from moeopt.grace.replication import REPLICATIONS, replicate
from moeopt.grace.routing import ROUTINGS, route

__all__ = [
    "GROUPINGS",
    "REPLICATIONS",
    "ROUTINGS",
    "Batches",
    "Nodes",
    "Outcome",
    "Plan",
    "Profile",
    "Settings",
    "Traffic",
    "group",
    "make_batches",
    "make_plan",
    "means",
    "measure",
    "profile",
    "replicate",
    "route",
    "run",
]
