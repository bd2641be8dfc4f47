"""Plans of servers as hosts: the experts of a server dealt out to its GPUs, and back."""

from __future__ import annotations

import numpy as np

from moeopt.topology.data import BoolArray, IntArray, TopologyData


def hosts_of(data: TopologyData, plan: BoolArray) -> BoolArray:
    """Deal the experts of each server out to its GPUs in turn, layer by layer.

    A server's GPUs are equal. With n of its experts in a layer a GPU gets at most ⌈n/G⌉ of them,
    and with N in all layers at most ⌈N/G⌉: within slots and memory if the server is.

    Returns
    -------
    bool array, shape (L, E, G)
    """
    hosts = np.zeros((*plan.shape[:2], len(data.node_of_gpu)), dtype=bool)
    for s in range(data.servers):
        gpus = np.flatnonzero(data.node_of_gpu == s)
        l, e = np.nonzero(plan[:, :, s])
        hosts[l, e, gpus[np.arange(len(l)) % len(gpus)]] = True
    return hosts


def copies_on_servers(data: TopologyData, hosts: BoolArray) -> IntArray:
    """Count the copies of each expert on each server, shape (L, E, S)."""
    copies = np.zeros((*hosts.shape[:2], data.servers), dtype=np.int64)
    for s in range(data.servers):
        copies[:, :, s] = hosts[:, :, data.node_of_gpu == s].sum(axis=2)
    return copies
