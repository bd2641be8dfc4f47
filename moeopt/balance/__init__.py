"""The problem ``balance``: replicas of experts, placed so that no GPU has much more to do.

>>> import numpy as np
>>> from moeopt.balance import rebalance_experts
>>> plan, slots, counts = rebalance_experts(np.array([[9.0, 3, 3, 1]]), 6, 1, 1, 3)
>>> counts.tolist()
[[3, 1, 1, 1]]
"""

from moeopt.balance.check import BalanceReport, check_balance
from moeopt.balance.data import BalanceData, balance_data
from moeopt.balance.layer import Effort
from moeopt.balance.migration import balance_front
from moeopt.balance.rebalance import rebalance_experts
from moeopt.balance.solve import BalanceOutcome, solve_balance

__all__ = [
    "BalanceData",
    "BalanceOutcome",
    "BalanceReport",
    "Effort",
    "balance_data",
    "balance_front",
    "check_balance",
    "rebalance_experts",
    "solve_balance",
]
