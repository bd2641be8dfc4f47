"""Plans of some layers in the arrays of the compiled kernels: loaded, cooled, descended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from moeopt.heuristics import anneal_kernels as kernels
from moeopt.heuristics.anneal_plan import Plan, Rows, Work, set_up
from moeopt.problem import IntArray, Scenarios

BoolArray = npt.NDArray[np.bool_]

#: Masks of GPUs have 64 bits; the checker's have 62.
REPLICA_GPUS_LIMIT = 62
#: Proposals from which the scale of the temperatures is measured.
SCALE_MOVES = 400
# Proposals between two looks at the clock, and moves of one descent.
_CHUNK_STEPS = 5_000
_DESCENT_MOVES = 2_000_000


class Search:
    """Plans of some layers that share GPUs, in the arrays of the kernels.

    Parameters
    ----------
    layers : sequence of Scenarios
    experts, gpus : int
    per_layer : int
        Experts of one layer that a GPU may host.
    cells : int array, shape (G,)
        Experts of all layers that each GPU may host.
    replicas : bool
        Whether an expert may have several copies.
    """

    def __init__(
        self,
        layers: Sequence[Scenarios],
        experts: int,
        gpus: int,
        per_layer: int,
        cells: IntArray,
        *,
        replicas: bool,
        seed: int,
    ) -> None:
        if replicas and gpus > REPLICA_GPUS_LIMIT:
            raise ValueError(f"{gpus} GPUs: masks hold at most {REPLICA_GPUS_LIMIT}")
        self.layers, self.experts, self.gpus, self.replicas = layers, experts, gpus, replicas
        self.rows = _rows(layers, experts, gpus, per_layer)
        total, count = len(layers) * experts, len(self.rows.weight)
        width = self.rows.member.shape[1]
        gpu = np.repeat(np.arange(gpus), np.minimum(cells, len(layers) * min(per_layer, experts)))
        self.plan = Plan(
            content=np.full(len(gpu), -1, dtype=np.int32),
            gpu=gpu.astype(np.int32),
            cell=np.full((total, gpus), -1, dtype=np.int32),
            copies=np.zeros(total, dtype=np.int64),
            mask=np.zeros(total, dtype=np.uint64),
            used=np.zeros((len(layers), gpus), dtype=np.int64),
            time=np.zeros(count, dtype=np.int64),
            count=np.zeros((count, gpus + 1), dtype=np.int16),
            served=np.full(len(self.rows.row), -1, dtype=np.int16),
            late=np.zeros(count, dtype=np.bool_),
            full=np.zeros(count, dtype=np.uint64),
        )
        self.work = Work(
            mask=np.zeros(max(width, 4), dtype=np.uint64),
            place=np.zeros(max(width, 4), dtype=np.int64),
            gpus=np.zeros((3, gpus), dtype=np.int64),
        )
        self.random = np.random.SeedSequence(seed).generate_state(1, np.uint64) | np.uint64(1)
        self.all_gpus = np.ones(gpus, dtype=np.bool_)
        self.least = float(self.rows.weight @ self.rows.least)
        self.value = math.nan

    def load(self, hosts: BoolArray) -> float:
        """Take over hosts of shape (L, E, G); return their expected time.

        Raises
        ------
        ValueError
            A GPU has not enough cells.
        """
        flat = hosts.reshape(-1, self.gpus)
        content = self.plan.content
        content[:] = -1
        for g in range(self.gpus):
            here = np.flatnonzero(flat[:, g])
            at = np.flatnonzero(self.plan.gpu == g)
            if len(here) > len(at):
                raise ValueError(f"GPU {g} hosts {len(here)} experts and has room for {len(at)}")
            content[at[: len(here)]] = here
        return self.restore(content)

    def restore(self, content: npt.NDArray[np.int32]) -> float:
        """Take over the contents of all cells; return their expected time."""
        self.plan.content[:] = content
        self.value = float(set_up(self.rows, self.plan, self.replicas, self.work))
        return self.value

    def hosts(self) -> BoolArray:
        """Hosts of the plan, shape (L, E, G)."""
        return (self.plan.cell >= 0).reshape(len(self.layers), self.experts, self.gpus)

    def descend(self, most: int = _DESCENT_MOVES) -> float:
        """Descend to a plan that no single move improves (or ``most`` moves were tried)."""
        cells = np.arange(len(self.plan.content))
        gain, _ = kernels.descend(self.rows, self.plan, self.replicas, cells, most, self.work)
        self.value += gain
        return self.value

    def scale(self, open_gpus: BoolArray | None = None) -> float:
        """Mean change of the expected time by a random move that changes it."""
        cells, is_open = self._open(open_gpus)
        return float(
            kernels.mean_change(
                self.rows,
                self.plan,
                self.replicas,
                cells,
                is_open,
                SCALE_MOVES,
                self.random,
                self.work,
            )
        )

    def cool(
        self,
        steps: int,
        hot: float,
        cold: float,
        *,
        open_gpus: BoolArray | None = None,
        deadline: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Anneal from ``hot`` to ``cold``, end at the best plan met; return the steps made.

        Parameters
        ----------
        open_gpus : bool array, shape (G,), optional
            Only these GPUs change.
        deadline : float
            On ``time.monotonic``.
        """
        cells, is_open = self._open(open_gpus)
        best_content = self.plan.content.copy()
        value = best = self.value
        done = 0
        while done < steps and not stop() and time.monotonic() < deadline:
            here = min(_CHUNK_STEPS, steps - done)
            value, best = kernels.anneal_steps(
                self.rows,
                self.plan,
                self.replicas,
                cells,
                is_open,
                here,
                hot * (cold / hot) ** (done / steps),
                hot * (cold / hot) ** ((done + here) / steps),
                value,
                best,
                best_content,
                self.random,
                self.work,
            )
            done += here
        self.restore(best_content)
        return done

    def _open(self, open_gpus: BoolArray | None) -> tuple[IntArray, BoolArray]:
        is_open = self.all_gpus if open_gpus is None else open_gpus
        return np.flatnonzero(is_open[self.plan.gpu]), is_open


def _rows(layers: Sequence[Scenarios], experts: int, gpus: int, per_layer: int) -> Rows:
    sizes = np.concatenate([s.sizes for s in layers])
    expert = np.concatenate([s.expert for s in layers])
    layer = np.repeat(np.arange(len(layers)), [len(s.expert) for s in layers])
    row = np.repeat(np.arange(len(sizes)), sizes)
    column = np.arange(len(expert)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    item = layer * experts + expert
    member = np.full((len(sizes), int(sizes.max(initial=1))), -1, dtype=np.int32)
    member[row, column] = item
    bits = np.zeros((len(sizes), -(-experts // 64)), dtype=np.uint64)
    np.bitwise_or.at(bits, (row, expert // 64), np.uint64(1) << (expert % 64).astype(np.uint64))
    order = np.argsort(item, kind="stable")
    occurrence = np.full(member.shape, -1, dtype=np.int32)
    occurrence[row[order], column[order]] = np.arange(len(order))
    return Rows(
        first=np.searchsorted(item[order], np.arange(len(layers) * experts + 1)),
        row=row[order].astype(np.int32),
        occurrence=occurrence,
        member=member,
        bits=bits,
        size=sizes.astype(np.int64),
        least=(-(-sizes // gpus)).astype(np.int64),
        weight=np.concatenate([s.weight for s in layers]),
        experts=experts,
        slots=per_layer,
    )
