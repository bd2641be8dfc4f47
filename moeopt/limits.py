"""Limits that a user sets, refused where they can mean nothing."""

from __future__ import annotations

from moeopt.errors import InputError


def require_limits(time_limit_s: float, memory_limit_mib: float | None = None) -> None:
    """Refuse limits that are not positive numbers; infinite ones are none.

    Raises
    ------
    InputError
        One line for each.
    """
    given = {"time": (time_limit_s, "s"), "memory": (memory_limit_mib, "MiB")}
    # "Not positive" the other way round would let NaN pass.
    lines = [
        f"the {name} limit must be positive, not {value:g} {unit}"
        for name, (value, unit) in given.items()
        if value is not None and not value > 0
    ]
    if lines:
        raise InputError(lines)
