"""Experts of a Mixture-of-Experts LLM: where to place them, with a proof of how good it is.

>>> import moeopt
>>> outcome = moeopt.solve("smoke_replication_pairs", problem="replication")
>>> outcome.record.status
'optimal'
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "Instance",
    "MoeoptError",
    "Solution",
    "SolverError",
    "check",
    "read_instance",
    "rebalance_experts",
    "solve",
]

if TYPE_CHECKING:
    from moeopt.balance import rebalance_experts
    from moeopt.catalog import read_instance
    from moeopt.checker import CheckReport
    from moeopt.errors import InputError, MoeoptError, SolverError
    from moeopt.instance import Instance
    from moeopt.solution import Solution
    from moeopt.solving import solve

_HOME = {
    "InputError": "moeopt.errors",
    "Instance": "moeopt.instance",
    "MoeoptError": "moeopt.errors",
    "Solution": "moeopt.solution",
    "SolverError": "moeopt.errors",
    "read_instance": "moeopt.catalog",
    "rebalance_experts": "moeopt.balance",
    "solve": "moeopt.solving",
}


def check(
    instance: Instance | str | os.PathLike[str], solution: Solution | str | os.PathLike[str]
) -> CheckReport:
    """Check a plan against an instance and recompute its objective.

    Parameters
    ----------
    instance : Instance, path, or name of a shipped instance
    solution : Solution or path

    Raises
    ------
    InputError
        A file does not fit, or the plan is for another instance.
    """
    from moeopt.catalog import read_instance as read
    from moeopt.checker import check_solution
    from moeopt.errors import InputError as Refused
    from moeopt.instance import Instance as InstanceType
    from moeopt.prepare import prepare
    from moeopt.solution import Solution as SolutionType
    from moeopt.solution import read_solution_file, validate_against

    if not isinstance(instance, InstanceType):
        instance = read(instance)
    if not isinstance(solution, SolutionType):
        solution = read_solution_file(solution)
    if lines := validate_against(instance, solution):
        raise Refused(lines)
    return check_solution(prepare(instance, solution.problem), solution)


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import moeopt` stays fast.
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'moeopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
