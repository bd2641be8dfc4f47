"""The same instance with GPUs, experts and requests under other numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moeopt.activation.data import ActivationData
from moeopt.balance.data import BalanceData
from moeopt.balance.hosts import hosts_of, plan_of
from moeopt.paging.data import PagingData
from moeopt.paging.requests import requests_of_rows
from moeopt.problem import ProblemData, Scenarios
from moeopt.topology.data import TopologyData


def relabelled(data: ProblemData, rng: np.random.Generator) -> ProblemData:
    """Permute experts (a permutation a layer), GPUs and request classes."""
    layers = [rng.permutation(data.experts) for _ in range(data.layers)]
    gpus = rng.permutation(data.gpus)
    changed = replace(
        data,
        scenarios=tuple(_scenarios(s, layers[l], rng) for l, s in enumerate(data.scenarios)),
        load=np.stack([_moved(row, new) for row, new in zip(data.load, layers, strict=True)]),
        free_mib=None if data.free_mib is None else data.free_mib[gpus],
        gpu_kind=data.gpu_kind[gpus],
    )
    if data.balance is not None:
        return replace(changed, balance=_balance(data.balance, layers, gpus))
    if data.paging is not None:
        return replace(changed, paging=_paging(data.paging, layers))
    if data.topology is not None:
        return replace(changed, topology=_topology(data.topology, layers, gpus, rng))
    if data.affinity is not None:
        # GPUs are numbered node by node: they keep their numbers.
        flow = np.array(
            [
                _moved(_moved(f, a).T, b).T
                for f, a, b in zip(data.affinity.flow, layers[:-1], layers[1:], strict=False)
            ]
        ).reshape(data.affinity.flow.shape)
        affinity = replace(data.affinity, load=changed.load, flow=flow, scenarios=changed.scenarios)
        return replace(changed, gpu_kind=data.gpu_kind, affinity=affinity)
    if data.activation is not None:
        return replace(changed, activation=_activation(data.activation, layers, gpus, rng))
    if data.requests is None:
        return changed
    order = rng.permutation(len(data.requests.names))
    usage = np.stack(
        [
            np.stack([_moved(row, layers[l]) for l, row in enumerate(data.requests.usage[c])])
            for c in order
        ]
    )
    requests = replace(
        data.requests,
        names=tuple(data.requests.names[c] for c in order),
        count=data.requests.count[order],
        prompt_tokens=data.requests.prompt_tokens[order],
        output_tokens=data.requests.output_tokens[order],
        kv_mib=data.requests.kv_mib[order],
        usage=usage,
    )
    given = data.wave_requests
    return replace(
        changed, requests=requests, wave_requests=None if given is None else given[order]
    )


def _balance(balance: BalanceData, layers, gpus) -> BalanceData:
    loads = np.stack(
        [[_moved(row, new) for row, new in zip(w, layers, strict=True)] for w in balance.loads]
    )
    if balance.previous is None:
        return replace(balance, loads=loads)
    hosts = hosts_of(balance.previous, balance.slots, balance.experts)
    hosts = np.stack([_moved(rows, new) for rows, new in zip(hosts, layers, strict=True)])
    return replace(balance, loads=loads, previous=plan_of(hosts[:, :, gpus], balance.slots))


def _paging(given: PagingData, layers) -> PagingData:
    old = given.requests
    expert = np.concatenate(layers)[old.page]
    requests = requests_of_rows(old.layers, old.experts, old.ptr, expert)
    return replace(given, requests=requests)


def _activation(given: ActivationData, layers, gpus, rng) -> ActivationData:
    scenarios = tuple(
        tuple(_scenarios(s, new, rng) for s in row)
        for row, new in zip(given.scenarios, layers, strict=True)
    )
    if given.hosts is None:
        return replace(given, scenarios=scenarios)
    hosts = np.stack([_moved(rows, new) for rows, new in zip(given.hosts, layers, strict=True)])
    return replace(given, scenarios=scenarios, hosts=hosts[:, :, gpus])


def _topology(topology: TopologyData, layers, gpus, rng) -> TopologyData:
    """Servers get other numbers, too."""
    servers = rng.permutation(topology.servers)  # new numbers
    old = np.argsort(servers)
    return replace(
        topology,
        hops=topology.hops[np.ix_(old, old)],
        node_of_gpu=servers[topology.node_of_gpu[gpus]],
        dispatch=servers[topology.dispatch],
        collect=servers[topology.collect],
        weight=np.stack(
            [_moved(row, new) for row, new in zip(topology.weight, layers, strict=True)]
        ),
        capacity=topology.capacity[old],
        capacity_per_layer=topology.capacity_per_layer[old],
    )


def _moved(row, new):
    out = np.empty_like(row)
    out[new] = row
    return out


def _scenarios(scenarios: Scenarios, new, rng) -> Scenarios:
    order = rng.permutation(len(scenarios))
    expert, tokens = [], []
    for s in order:
        members = new[scenarios.members(s)]
        by = np.argsort(members)
        expert.append(members[by])
        tokens.append(scenarios.counts(s)[by])
    return Scenarios(
        np.cumsum([0, *(len(e) for e in expert)]),
        np.concatenate(expert),
        np.concatenate(tokens),
        scenarios.weight[order],
    )
