"""The checker of ``dispatch``: tokens, replicas and time of an assignment, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_flow import given_time
from moeopt.problem import LayerTime


def check_dispatch(
    hosts: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
    layer_time: LayerTime,
    assignment: Iterable[tuple[int, int, float]],
) -> tuple[float, list[str]]:
    """Evaluate an assignment from anywhere.

    Parameters
    ----------
    hosts : bool array, shape (E, G)
    counts : int array, shape (E,)
    layer_time : LayerTime
    assignment : iterable of (expert, gpu, tokens)

    Returns
    -------
    time : float
        ``max_g f(A_g, N_g)``.
    violations : list of str
        Empty if and only if all tokens are computed, whole, each on a replica of its expert.
    """
    parts = list(assignment)
    tokens = np.zeros(hosts.shape)
    lines = []
    for e, g, n in parts:
        if not (0 <= e < hosts.shape[0] and 0 <= g < hosts.shape[1]):
            lines.append(f"expert {e} or GPU {g} does not exist")
        elif not hosts[e, g]:
            lines.append(f"GPU {g} does not host expert {e}")
        elif n < 0 or n != int(n):
            lines.append(f"expert {e}, GPU {g}: {n} tokens")
        elif tokens[e, g]:
            lines.append(f"expert {e}, GPU {g}: listed twice")
        else:
            tokens[e, g] = n
    lines += [
        f"expert {e}: {tokens[e].sum():g} of {counts[e]} tokens are computed"
        for e in np.flatnonzero(tokens.sum(axis=1) != counts).tolist()
    ]
    return given_time(layer_time, parts, hosts.shape[1]) if not lines else np.inf, lines
