"""Reading a dispatch that a solution states: what is wrong with it, else what it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: A replica's stated tokens may differ from a whole number by this and are then rounded to it.
FRACTION_TOLERANCE = 1e-6
#: Relative imbalance allowed for real tokens: solvers meet rows to about 1e-7 of their scale.
BALANCE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    Attributes
    ----------
    kind : str
        A fixed name, such as ``memory_exceeded``.
    where : str
        Where in the plan, in words.
    amount : float
        By how much (experts, replicas, MiB, requests, waves, steps, tokens, or the objective's
        unit; each kind has one of these).
    message : str
        One line for people.
    """

    kind: str
    where: str
    amount: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def read_dispatch(
    parts: Sequence[tuple[int, int, float]],
    tokens: Mapping[int, float],
    hosts: npt.NDArray[np.bool_],
    whole: bool,
    where: str,
) -> tuple[list[tuple[int, int, float]] | None, list[Violation]]:
    """Check one scenario's (or wave's) stated dispatch.

    Parameters
    ----------
    parts : sequence of (expert, gpu, tokens)
        Several entries of one replica are added up; entries without tokens activate nothing.
    tokens : mapping
        Tokens of each expert that has any.
    hosts : bool array, shape (E, G)
    whole : bool
        Whether tokens are indivisible.

    Returns
    -------
    assignment : list of (expert, gpu, tokens), or None
        None if anything is violated. Real tokens are rescaled for each expert so that they add up
        to exactly what it must compute: within the tolerance a dispatch could else drop tokens and
        look faster than it is.
    violations : list of Violation
    """
    found: list[Violation] = []

    def report(kind: str, amount: float, message: str) -> None:
        found.append(Violation(kind, where, float(amount), f"{where}: {message}"))

    given: dict[tuple[int, int], float] = {}
    for e, g, amount in parts:
        if not (0 <= e < hosts.shape[0] and 0 <= g < hosts.shape[1]):
            report("dispatch_shape", 1, f"no expert {e} or no GPU {g}")
        elif amount < 0:
            report(
                "dispatch_negative", -amount, f"expert {e} computes {amount:g} tokens on GPU {g}"
            )
        elif amount > 0 and not hosts[e, g]:
            report("dispatch_not_hosted", amount, f"GPU {g} has no replica of expert {e}")
        elif whole and abs(amount - round(amount)) > FRACTION_TOLERANCE:
            report(
                "dispatch_fractional",
                abs(amount - round(amount)),
                f"expert {e} computes {amount:g} tokens on GPU {g}, tokens are whole",
            )
        elif amount > 0:
            given[e, g] = given.get((e, g), 0) + (round(amount) if whole else amount)
    if found:
        return None, found

    sent: dict[int, list[float]] = {}
    for (e, _), amount in given.items():
        sent.setdefault(e, []).append(amount)
    scale: dict[int, float] = {}
    for e in sorted({*sent, *tokens}):
        total, needed = math.fsum(sent.get(e, ())), tokens.get(e, 0)
        if abs(total - needed) > (0 if whole else BALANCE_TOLERANCE * needed):
            report(
                "dispatch_unbalanced",
                abs(total - needed),
                f"expert {e} computes {total:g} tokens, not {needed:g}",
            )
        else:
            scale[e] = 1 if whole else needed / total if total else 0
    if found:
        return None, found
    return [(e, g, amount * scale[e]) for (e, g), amount in sorted(given.items()) if amount], []
