"""Units and exact memory arithmetic.

A size in a file is a decimal number of MiB; memory itself is a whole number of bytes. Sizes that
take memory are rounded up to whole bytes, memory that offers it is rounded down, once, when a file
is prepared. A whole number of bytes divided by 2**20 is exact in double precision (below 8 PiB),
so sums and comparisons of such MiB values are exact everywhere: in the checker, in the
formulations, and in CP-SAT's integers.
"""

from __future__ import annotations

import math
from fractions import Fraction

BYTES_PER_MIB = 2**20


def mib_up(size_mib: float | Fraction) -> float:
    """Round a size up to whole bytes; return it in MiB (exact in double precision)."""
    return math.ceil(_decimal(size_mib) * BYTES_PER_MIB) / BYTES_PER_MIB


def mib_down(size_mib: float | Fraction) -> float:
    """Round a capacity down to whole bytes; return it in MiB (exact in double precision)."""
    return math.floor(_decimal(size_mib) * BYTES_PER_MIB) / BYTES_PER_MIB


def _decimal(value: float | Fraction) -> Fraction:
    # 0.1 in a file means one tenth, not the double nearest to it.
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))
