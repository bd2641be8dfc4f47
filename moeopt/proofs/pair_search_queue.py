"""Share the parts of a tree among threads; give up a tree that would not end in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]

# After this share of all time a tree is given up once it seems to need more than what is left.
_PROBE = 0.04


@dataclass
class Limits:
    """When a search must end; ``budget`` is all of its time, ``deadline`` on the ``clock``."""

    clock: Callable[[], float]
    deadline: float
    budget: float
    stop: Callable[[], bool]

    def over(self) -> bool:
        """Whether it must end now."""
        return self.clock() >= self.deadline or self.stop()


@dataclass(frozen=True)
class Outcome:
    """What a tree with a target ended with.

    Attributes
    ----------
    finished : bool
        The whole tree was searched: no plan is below ``bound``.
    bound : float
        Expected time, the target or the value of a better plan; not proved unless ``finished``.
    hosts : bool array, shape (E, G), or None
        A plan below the target.
    share : float
        Share of the tree's parts that were searched.
    nodes : int
    """

    finished: bool
    bound: float
    hosts: npt.NDArray[np.bool_] | None
    share: float
    nodes: int


class Best:
    """Least value so far and its plan, for all threads: none overwrites a better one."""

    def __init__(self, value: int) -> None:
        self.start = self.value = value
        self.plan: Array | None = None
        self._lock = threading.Lock()

    def offer(self, value: int, plan: Array) -> None:
        """Keep a copy of the plan if it is the best so far."""
        with self._lock:
            if value < self.value:
                self.value, self.plan = value, plan.copy()


def share_out(
    parts: int,
    runs: Sequence[Callable[[int], bool]],
    limits: Limits,
    halt: Callable[[], None],
    *,
    begin: float,
) -> int:
    """Run parts 0, 1, ... in random order, one thread a function; return how many were finished.

    Parameters
    ----------
    runs : functions of the number of a part; False if it was halted
    halt : makes running functions return soon
    begin : when the tree was begun, by the clock of ``limits``

    Raises
    ------
    BaseException
        The first error of a thread.
    """
    todo = np.random.default_rng(0).permutation(parts).tolist()
    done, halted = 0, False
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(run: Callable[[int], bool]) -> None:
        nonlocal done, halted
        try:
            while not halted:
                with lock:
                    if not todo:
                        return
                    part = todo.pop()
                if not run(part):
                    return
                with lock:
                    done += 1
        except BaseException as error:
            failures.append(error)
            halted = True
            halt()

    workers = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(0.05)
        now = limits.clock()
        passed, remaining = now - begin, limits.deadline - now
        hopeless = passed > _PROBE * limits.budget and passed * parts > (passed + remaining) * (
            done + 1
        )
        if limits.over() or hopeless:
            halted = True
            halt()
    if failures:
        raise failures[0]
    return done
