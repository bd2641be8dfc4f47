"""A line when loops are compiled: the first run of a kind would be silent for up to a minute."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

P = ParamSpec("P")

COMPILING = "compiling loops (once, up to a minute; `python -m moeopt.kernels` does it beforehand)"


def tells_of_compiling(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command say on standard error, once, that numba compiles: not for what is cached."""

    @functools.wraps(command)
    def telling(*args: P.args, **kwargs: P.kwargs) -> None:
        # Not at module level: commands without loops need no numba.
        from numba.core import event

        class Teller(event.Listener):
            told = False

            def on_start(self, event: Any) -> None:
                if not self.told:
                    self.told = True
                    print(COMPILING, file=sys.stderr, flush=True)

            def on_end(self, event: Any) -> None:
                pass

        with event.install_listener("numba:compile", Teller()):
            command(*args, **kwargs)

    return telling
