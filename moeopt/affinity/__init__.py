"""The problem ``affinity``: experts that are used one after the other, or together, on one GPU."""

from moeopt.affinity.bounding import AffinityBound, column_value, partners_bound, psd_value
from moeopt.affinity.data import AffinityData, contiguous, hosts_of, pair_of
from moeopt.affinity.evaluate import AffinityReport, evaluate
from moeopt.affinity.search import find_plan

__all__ = [
    "AffinityBound",
    "AffinityData",
    "AffinityReport",
    "column_value",
    "contiguous",
    "evaluate",
    "find_plan",
    "hosts_of",
    "pair_of",
    "partners_bound",
    "psd_value",
]
