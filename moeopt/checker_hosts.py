"""What a check of hosts alone finds: of problems whose objective needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moeopt.checker_dispatch import Violation


@dataclass(frozen=True)
class HostsCheck:
    """What is wrong, and the objective.

    Attributes
    ----------
    violations : list of Violation
        Of the rules that the problem adds to those of all problems.
    objective : float or None
        None where the hosts have none: an expert is nowhere, or not where the problem wants it.
    evaluated_by : str or None
        How it was computed; starts with "exact" where it is the plan's value.
    details : dict
        Plain data for the report.
    """

    violations: list[Violation]
    objective: float | None = None
    evaluated_by: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
