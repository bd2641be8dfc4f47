"""A tiny cluster for the tests of replays."""

from __future__ import annotations

import numpy as np

from moeopt.problem import LayerTime, ProblemData


def small_data(gpus=2, experts=4, layers=2, free_mib=None, f=None, top_k=2, **more):
    """Equal experts of 1 MiB; ``f`` = 10·A + N unless given."""
    return ProblemData(
        name="small",
        sha256="",
        problem="replication",
        layers=layers,
        experts=experts,
        top_k=top_k,
        gpus=gpus,
        expert_mib=1.0,
        free_mib=free_mib,
        slots=experts,
        layer_time=f or LayerTime("sum", 0.0, 10.0, 0.0, 1.0),
        scenarios=(),
        load=np.ones((layers, experts)),
        gpu_kind=np.zeros(gpus, dtype=np.int64),
        **more,
    )
