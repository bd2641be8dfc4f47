"""Which formulation and solver, where nobody says; and whether what is said fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType

from moeopt.catalog import load_formulation, solver_names
from moeopt.errors import InputError
from moeopt.problem import ProblemData

#: What is tried where no formulation is asked for: (formulation, solver).
DEFAULTS = {
    "placement": ("placement_cp", "cpsat"),
    "replication": ("replication_cp", "cpsat"),
    "joint": ("joint_work", "highs"),
    "balance": ("balance_even", "highs"),
    "activation": ("activation_placement_ordered", "highs"),
    "paging": ("paging_flow", "highs"),
    "affinity": ("affinity_assignment_ordered", "highs"),
    "topology": ("topology_assignment", "highs"),
}

#: ... and under the rule ``optimal`` of ``balance``.
DEFAULT_OPTIMAL = ("balance_optimal", "highs")

#: ... and where ``activation`` keeps a plan.
DEFAULT_FIXED = ("activation_choice", "highs")

#: ... and where ``topology`` may hold copies.
DEFAULT_REPLICAS = ("topology_distances", "highs")

#: Larger programs are not worth starting without being asked: building them eats the time limit.
LARGEST_DEFAULT_NONZEROS = 4_000_000

#: ... and of these problems they close no gap of the search beyond this size.
LARGEST_NONZEROS = {
    "balance": 50_000,
    "topology": 100_000,
    "affinity": 20_000,
    "activation": 50_000,
}

#: Smaller programs of ``placement`` and ``replication`` go to the exact search at once; larger ones
#: of ``joint`` are left out where there is a single wave, or the waves are prescribed.
SMALL_NONZEROS = 5_000


@dataclass(frozen=True)
class Choice:
    """A formulation and a solver for it."""

    name: str
    module: ModuleType
    solver: str

    def kind(self, data: ProblemData) -> str:
        """What the formulation's value proves for this instance."""
        kind_of = getattr(self.module, "kind", None)
        kind = str(kind_of(data) if kind_of is not None else self.module.KIND)
        # Formulations of `joint` charge activated replicas and know no equal slots: both rules
        # only make plans dearer or fewer, so what is exact without them is a relaxation with them.
        relaxed = data.charged == "resident" or data.uniform_slots
        return "relaxation" if kind == "exact" and relaxed else kind

    def proves(self, data: ProblemData) -> bool:
        """Whether its dual bound is a lower bound of the problem."""
        return self.kind(data) in ("exact", "relaxation")

    def nonzeros(self, data: ProblemData) -> int:
        """Nonzeros of the program, from its size formula."""
        return int(self.module.size(data)["nonzeros"])


def choose(
    data: ProblemData, formulation: str | os.PathLike[str] | None, solver: str | None
) -> tuple[Choice | None, str | None]:
    """Return the choice, and why there is none where nobody asked for one.

    Raises
    ------
    InputError
        What was asked for does not exist or does not fit.
    """
    usual = _default(data)
    name = os.fspath(formulation) if formulation is not None else usual[0]
    module = load_formulation(name)
    if data.problem != module.PROBLEM:
        raise InputError(f"formulation {name} is for {module.PROBLEM}, not for {data.problem}")
    allowed = solver_names(module)
    chosen = solver or (usual[1] if formulation is None else allowed[0])
    if chosen not in solver_names():
        raise InputError(f"there is no solver {chosen!r}; solvers are {', '.join(solver_names())}")
    if chosen not in allowed:
        raise InputError(f"{name} is a native CP model: only cpsat solves it, not {chosen}")
    choice, reason = Choice(name, module, chosen), module.supports(data)
    if formulation is not None:
        if reason is not None:
            raise InputError(f"formulation {name} does not take this instance: {reason}")
        return choice, None
    most = LARGEST_NONZEROS.get(data.problem, LARGEST_DEFAULT_NONZEROS)
    if reason is None and choice.nonzeros(data) > most:
        reason = (
            f"its {choice.nonzeros(data):,} nonzeros are too many to start unasked "
            f"(more than {most:,}; ask for it with --formulation)"
        )
    known = data.problem == "joint" and (data.waves == 1 or data.wave_requests is not None)
    if reason is None and known and choice.nonzeros(data) > SMALL_NONZEROS:
        waves = "a single wave" if data.waves == 1 else "prescribed waves"
        reason = f"it adds nothing to the bound by layers of {waves}"
    return (choice, None) if reason is None else (None, f"{name}: {reason}")


def _default(data: ProblemData) -> tuple[str, str]:
    if data.balance is not None and data.balance.rule == "optimal":
        return DEFAULT_OPTIMAL
    if data.activation is not None and data.activation.hosts is not None:
        return DEFAULT_FIXED
    if data.topology is not None and data.topology.replicas:
        return DEFAULT_REPLICAS
    return DEFAULTS[data.problem]


def is_small(choice: Choice, data: ProblemData) -> bool:
    """Whether the exact search needs no help: neither a warm start nor stronger bounds."""
    direct = ("placement", "replication", "activation")
    return data.problem in direct and choice.nonzeros(data) <= SMALL_NONZEROS
