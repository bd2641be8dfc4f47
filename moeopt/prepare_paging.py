"""The part of :func:`moeopt.prepare.prepare` that is for ``paging``: requests, cache, load time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_parts import PagingOptions
from moeopt.problem import ProblemData
from moeopt.units import BYTES_PER_MIB

BYTES_PER_GB = 10**9


def missing_for_paging(instance: Instance) -> Iterator[str]:
    """Say what an instance lacks."""
    if instance.paging is None:
        yield "problem paging needs `paging`: what is asked for, and the cache"
        return
    if instance.cluster.gpus != 1:
        yield f"problem paging is of one GPU, cluster has {instance.cluster.gpus}"
    if instance.paging.cache is None and instance.cluster.nodes[0].memory_mib is None:
        yield "problem paging needs paging.cache, or memory_mib in cluster.nodes"


def with_paging(data: ProblemData, instance: Instance) -> ProblemData:
    """Return the data with its requests, cache and load times.

    Without ``cache`` the free memory of the GPU holds as many experts as it can.

    Raises
    ------
    InputError
        The trace does not fit the MoE.
    """
    # The kernels behind it are compiled: the other problems need not wait for their import.
    from moeopt.paging.data import PagingData
    from moeopt.paging.requests import requests_of_rows

    options = instance.paging
    if options is None:
        raise ValueError("there are no requests to serve")  # refused before
    if options.requests is not None:
        rows = options.requests
        requests = requests_of_rows(data.layers, data.experts, rows.ptr, rows.values)
    else:
        requests = _of_trace(data, options)
    cache = options.cache
    if cache is None:
        assert data.free_mib is not None
        cache = max(
            0, int(data.free_mib[0] * BYTES_PER_MIB) // round(data.expert_mib * BYTES_PER_MIB)
        )
    load_us = None
    if options.load_us is not None:
        load_us = np.broadcast_to(options.load_us, data.layers).astype(np.float64)
    elif options.load_gb_s is not None:
        seconds = data.expert_mib * BYTES_PER_MIB / (options.load_gb_s * BYTES_PER_GB)
        load_us = np.full(data.layers, seconds * 1e6)
    return replace(data, paging=PagingData(requests, cache, load_us))


def _of_trace(data: ProblemData, options: PagingOptions):  # type: ignore[no-untyped-def]
    from moeopt.make.traces_shipped import ROUTING, read_trace
    from moeopt.paging.streams import requests_of_choices

    if options.trace not in ROUTING:
        raise InputError(
            f"paging.trace: {options.trace!r} is not a shipped trace of routing "
            f"({', '.join(ROUTING)})"
        )
    trace = read_trace(options.trace)
    if (trace.layers, trace.experts) != (data.layers, data.experts):
        raise InputError(
            f"paging.trace: has {trace.layers} layers of {trace.experts} experts, the instance "
            f"{data.layers} of {data.experts}"
        )
    if options.sequences is not None:
        if options.sequences > len(trace.lengths):
            raise InputError(f"paging.sequences: the trace has {len(trace.lengths)}")
        trace = trace.take(np.arange(options.sequences))
    return requests_of_choices(trace.ids, trace.offsets, trace.experts, batch=options.batch or 1)
