"""The checker of ``balance``: every slot filled, moves counted, loads in exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from moeopt.checker_dispatch import Violation
from moeopt.checker_hosts import HostsCheck
from moeopt.checker_times import BoolArray
from moeopt.problem import ProblemData
from moeopt.words import counted

#: How the tokens of an expert were shared by its replicas.
EVEN, LEVELLED = "exact: even split", "shares by levelling"


def check_hosts(data: ProblemData, hosts: BoolArray) -> HostsCheck:
    """Check hosts (L, E, G) against the rules that ``balance`` adds, and compute the objective.

    Under the rule ``even`` the objective is exact; under ``optimal`` that of shares found by
    levelling, which is an upper bound of the best shares and equal to it up to rounding.
    """
    from moeopt.balance.check import check_balance
    from moeopt.balance.hosts import plan_of
    from moeopt.balance.optimal import best_shares

    balance = data.balance
    if balance is None:  # no plan can exist: explain_infeasible says why
        return HostsCheck(list(_unfilled(data, hosts)))
    violations = list(_unfilled(data, hosts))
    if (hosts.sum(axis=1) != balance.slots).any() or not hosts.any(axis=2).all():
        return HostsCheck(violations)
    plan = plan_of(hosts, balance.slots)
    shares = best_shares(balance, plan) if balance.rule == "optimal" else None
    report = check_balance(replace(balance, most_moves=None), plan, shares)
    # What is left for it to find: groups that are not on their nodes.
    violations += [
        Violation("group_split", line.partition(":")[0], 1, line) for line in report.violations
    ]
    if balance.most_moves is not None and report.moves is not None:
        extra = report.moves - balance.most_moves
        if extra > 0:
            moved = counted(report.moves, "copy", "copies")
            text = f"{moved} moved, {balance.most_moves} allowed"
            violations.append(Violation("moves_exceeded", "all layers", extra, text))
    details: dict[str, Any] = {
        "layers": report.per_layer.tolist(),
        "balancedness": report.balancedness.tolist(),
    }
    if report.moves is not None:
        details["moves"] = report.moves
    evaluated_by = EVEN if shares is None else LEVELLED
    return HostsCheck(violations, report.objective, evaluated_by, details)


def _unfilled(data: ProblemData, hosts: BoolArray) -> Iterator[Violation]:
    """Slots without an expert; what is too much is for the rules of all problems to say."""
    if data.slots is None:
        return
    held = hosts.sum(axis=1)
    for layer, g in np.argwhere(held < data.slots).tolist():
        where = f"layer {layer}, GPU {g}"
        text = f"{where}: {held[layer, g]} experts, {data.slots} slots, all to be filled"
        yield Violation("slots_not_filled", where, data.slots - int(held[layer, g]), text)


def summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, as (label, text), from :attr:`HostsCheck.details`."""
    balancedness = np.array(details["balancedness"])
    lines = [
        (
            "balancedness",
            f"{balancedness.mean():.6f} on average, {balancedness.min():.6f} at least",
        )
    ]
    if "moves" in details:
        lines.append(("moves", counted(details["moves"], "copy", "copies")))
    return lines
