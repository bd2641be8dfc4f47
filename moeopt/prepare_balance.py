"""The part of :func:`moeopt.prepare.prepare` that is for ``balance``: loads, slots, moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moeopt.arrays import Rows
from moeopt.feasibility import explain_infeasible
from moeopt.instance import Instance
from moeopt.instance_parts import BalanceOptions
from moeopt.problem import IntArray, ProblemData


def with_balance(data: ProblemData, instance: Instance) -> ProblemData:
    """Return the data with its loads, slots and moves; as it is where no plan can exist.

    GPUs keep their names only where names matter: under a budget of moves every GPU is a kind of
    its own, with groups on nodes those of a node are one.
    """
    options = instance.balance or BalanceOptions()
    if explain_infeasible(data) or data.slots is None:
        return data
    # The search behind it is compiled: the other problems need not wait for its import.
    from moeopt.balance.data import BalanceData
    from moeopt.balance.hosts import plan_of

    loads = data.load[None] if options.windows is None else np.stack(options.windows)
    slots = np.full(data.gpus, data.slots, dtype=np.int64)
    previous = None
    if options.previous is not None:
        hosts = np.stack([_hosts(rows, data.gpus) for rows in options.previous])
        previous = plan_of(hosts, slots)
    nodes = len(instance.cluster.nodes) if options.groups_on_nodes else 1
    balance = BalanceData(
        np.asarray(loads, dtype=np.float64),
        slots,
        nodes=nodes,
        groups=instance.moe.expert_groups if options.groups_on_nodes else 1,
        rule=options.rule,
        previous=previous,
        most_moves=options.max_moves,
    )
    kind: IntArray = np.zeros(data.gpus, dtype=np.int64)
    if options.max_moves is not None:
        kind = np.arange(data.gpus, dtype=np.int64)
    elif balance.parts > 1:
        kind = np.arange(data.gpus, dtype=np.int64) // (data.gpus // balance.parts)
    return replace(data, balance=balance, gpu_kind=kind)


def _hosts(rows: Rows, gpus: int) -> np.ndarray:
    """Which GPU holds which expert, shape (E, G)."""
    hosts = np.zeros((len(rows), gpus), dtype=bool)
    hosts[rows.row, rows.values] = True
    return hosts
