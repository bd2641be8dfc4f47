"""The live line on standard error: phase, incumbent, bound, gap, time."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from moeopt.running import ProgressState

#: Seconds between lines where standard error is not a terminal.
_PLAIN_INTERVAL_S = 5.0


def number(value: float | None) -> str:
    """Seven significant digits, or a dash."""
    return "–" if value is None else f"{value:,.7g}"


def percent(gap: float | None) -> str:
    """Return a gap in percent, rounded up so that it never looks smaller than it is."""
    if gap is None:
        return "–"
    if gap <= 0:
        return "0 %"
    if gap < 5e-7:
        return "< 0.0001 %"
    digits = 4 if gap < 1e-3 else 2
    scale = 10**digits
    return f"{-(-gap * 100 * scale // 1) / scale:.{digits}f} %"


class ProgressLine:
    """Show :class:`ProgressState` as one live line (a terminal) or as lines now and then."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._shown: tuple[object, ...] = ()
        self._at = -_PLAIN_INTERVAL_S

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: ProgressState) -> None:
        """Show a state."""
        if state.message is not None:
            self._console.print(state.message, style="dim", highlight=False)
            return
        line = (
            f"{state.phase:<28} incumbent {number(state.upper_bound):>14}  "
            f"bound {number(state.lower_bound):>14}  gap {percent(state.gap):>10}  "
            f"{state.seconds:6.1f} s"
        )
        if self._live is not None:
            self._live.update(Text(line))
            return
        shown = (state.phase, state.upper_bound, state.lower_bound)
        now = time.monotonic()
        new_phase = not self._shown or shown[0] != self._shown[0]
        if new_phase or (shown != self._shown and now - self._at >= _PLAIN_INTERVAL_S):
            self._shown, self._at = shown, now
            print(line, file=sys.stderr, flush=True)
