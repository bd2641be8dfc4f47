"""The problem ``paging``: experts that do not fit, loaded into a cache when a layer asks for them.

>>> from moeopt.paging import curve_of, requests_of_lists
>>> requests = requests_of_lists(2, 2, [[0], [0], [1], [1], [0], [0]])
>>> curve_of(requests, "opt").misses.tolist()[1:], curve_of(requests, "lru").misses.tolist()[1:]
([6, 5, 4, 4], [6, 6, 6, 4])
"""

from moeopt.paging.belady import best_evictions, least_misses
from moeopt.paging.data import PagingData
from moeopt.paging.policies import OPTIMUM, STACK_POLICIES
from moeopt.paging.replay import Replay, replay
from moeopt.paging.requests import Requests, requests_of_lists, requests_of_rows
from moeopt.paging.simulate import SIZE_POLICIES, replay_policy
from moeopt.paging.stack import Curve, curve_of
from moeopt.paging.streams import requests_of_choices

__all__ = [
    "OPTIMUM",
    "SIZE_POLICIES",
    "STACK_POLICIES",
    "Curve",
    "PagingData",
    "Replay",
    "Requests",
    "best_evictions",
    "curve_of",
    "least_misses",
    "replay",
    "replay_policy",
    "requests_of_choices",
    "requests_of_lists",
    "requests_of_rows",
]
