"""Words for people."""

from __future__ import annotations


def counted(number: int, one: str, many: str) -> str:
    """Return ``1 copy`` or ``1,200 copies``."""
    return f"{number:,} {one if number == 1 else many}"
