"""Bounds over time: what a solve knew when, thinned for its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: Points that a record keeps.
MOST_POINTS = 200


@dataclass
class Trajectory:
    """Best upper and lower bound after each improvement."""

    _points: list[tuple[float, float | None, float | None]] = field(default_factory=list)

    def add(self, seconds: float, upper: float | None, lower: float | None) -> None:
        """Take note of the bounds; repetitions are dropped."""
        if self._points:
            _, known_upper, known_lower = self._points[-1]
            # A new phase may start from less than the phase before it had claimed.
            if known_upper is not None and (upper is None or known_upper < upper):
                upper = known_upper
            if known_lower is not None and (lower is None or known_lower > lower):
                lower = known_lower
            if (upper, lower) == (known_upper, known_lower):
                return
        self._points.append((seconds, upper, lower))
        if len(self._points) >= 4 * MOST_POINTS:
            self._points = _thinned(self._points)

    def points(
        self, seconds: float, upper: float | None, lower: float | None
    ) -> list[tuple[float, float | None, float | None]]:
        """Return ``(seconds, upper, lower)`` rows that end with the final bounds.

        While it runs, a solver claims what the checker or its own rounding may take back: no
        point is better than the final bounds, which are checked and proved.
        """
        clipped = Trajectory()
        for at, claimed_upper, claimed_lower in [*self._points, (seconds, upper, lower)]:
            checked = _worse(max, claimed_upper, upper)
            proved = _worse(min, claimed_lower, lower)
            if (checked, proved) != (None, None):
                clipped.add(at, checked, proved)
        return [(round(at, 3), up, low) for at, up, low in _thinned(clipped._points)]


def _worse(
    pick: Callable[[float, float], float], claimed: float | None, final: float | None
) -> float | None:
    return None if claimed is None or final is None else pick(claimed, final)


def _thinned(
    points: list[tuple[float, float | None, float | None]],
) -> list[tuple[float, float | None, float | None]]:
    """Keep the last point of each stretch of time, and the first point of all."""
    if len(points) <= MOST_POINTS:
        return points
    width = points[-1][0] / (MOST_POINTS - 1)
    last = {int(point[0] / width) if width > 0 else 0: point for point in points}
    return list(dict.fromkeys([points[0], *last.values()]))
