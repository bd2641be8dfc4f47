"""Maps made for some windows, scored on others; and what no map could beat there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from moeopt.advise.matching import moves, renamed
from moeopt.advise.question import Question
from moeopt.balance.bounding import bound_layer
from moeopt.balance.check import check_balance
from moeopt.balance.data import BalanceData, BoolArray, FloatArray, IntArray
from moeopt.balance.eplb import published_plan
from moeopt.balance.exact import float_above, float_below
from moeopt.balance.hosts import hosts_of, plan_of
from moeopt.balance.layer import Effort
from moeopt.balance.solve import find_plan
from moeopt.errors import InputError, MoeoptError

Windows = tuple[int, int]

#: The scored windows are summed into at most so many; the fitted ones as well.
SCORED = 8
#: Fewer fitted windows than this do not say whether to fit them one by one: their sum is fitted.
_ENOUGH = 4
#: Windows are fitted one by one unless their sum does better by more than this, on few windows.
_CLEARLY = 0.01
#: Several windows are never within the tolerance of the search, which ends by its rounds.
EFFORT = Effort(rounds=6, steps=40_000)


@dataclass(frozen=True)
class Score:
    """A map on the scored windows.

    Attributes
    ----------
    name : str
    balancedness : float
        Mean over windows and layers of the mean load of a GPU over the largest.
    largest_tokens : float
        Sum over layers, mean over windows, of the load of the fullest GPU, rounded up.
    moves : int or None
        Copies that GPUs get which did not hold them; None for the map in use.
    """

    name: str
    balancedness: float
    largest_tokens: float
    moves: int | None


@dataclass(frozen=True)
class Memory:
    """What the slots beyond one copy of every expert take, on all GPUs together.

    ``redundant_mib``: of the new map; ``added_mib``: beyond that of the map in use (may be below
    0); ``kv_tokens``: tokens whose KV cache would fit into ``redundant_mib``.
    """

    redundant_experts: int
    redundant_mib: float | None
    added_mib: float | None
    kv_tokens: int | None


@dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes
    ----------
    fitted, scored : (first, end) of the windows
    fitted_as : int
        Loads that the map of moeopt was made for: 1, the sum of the fitted windows, or so many.
    today, published, moeopt : Score
        ``published`` is None where the published heuristic does not apply.
    unreplicated : Score or None
        Of a map of moeopt without redundant experts: what is to be had without memory. None where
        the GPUs cannot hold equally many experts, or no slots are left over anyway.
    plan : int array, shape (L, P)
        The map of moeopt, expert in every slot.
    ceiling : float
        No map in these slots has a higher balancedness on the scored windows, even one made for
        each of them with hindsight; rounded up.
    least_tokens : float
        Nor a lower sum of the fullest GPUs' loads; rounded down.
    """

    name: str
    fitted: Windows
    scored: Windows
    fitted_as: int
    today: Score
    published: Score | None
    moeopt: Score
    unreplicated: Score | None
    plan: IntArray
    ceiling: float
    least_tokens: float
    memory: Memory

    @property
    def gain(self) -> float:
        """Share of the fullest GPUs' tokens that the map of moeopt saves against today."""
        return _saved(self.today.largest_tokens, self.moeopt.largest_tokens)

    @property
    def most_gain(self) -> float:
        """No map saves a larger share."""
        return _saved(self.today.largest_tokens, self.least_tokens)

    @property
    def published_gain(self) -> float | None:
        """Share that the map of the published heuristic saves."""
        if self.published is None:
            return None
        return _saved(self.today.largest_tokens, self.published.largest_tokens)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        document = asdict(self) | {
            "plan": self.plan.tolist(),
            "gain": self.gain,
            "most_gain": self.most_gain,
            "published_gain": self.published_gain,
        }
        return document


def _saved(before: float, after: float) -> float:
    return (before - after) / before if before > 0 else 0.0


def advise(
    question: Question,
    *,
    fit: Windows | None = None,
    score: Windows | None = None,
    effort: Effort | None = None,
) -> Advice:
    """Make maps for the windows of ``fit`` and score them on those of ``score``.

    Parameters
    ----------
    fit, score : (first, end), optional
        Windows from ``first`` up to, not including, ``end``. Default: the first and the second
        half; a single window is fitted and scored alike.
    effort : Effort, optional
        Of each search; :data:`EFFORT` if not given.

    Raises
    ------
    InputError
        There are no such windows, or no tokens in them.
    MoeoptError
        A map is better than the ceiling: an error of moeopt.
    """
    count = len(question.loads)
    fit = fit or (0, max(1, count // 2))
    score = score or (count // 2 if count > 1 else 0, count)
    effort = effort or EFFORT
    fitted = _fitted(question, _merged(question.loads, fit, SCORED, "fit"), effort)
    scored = _merged(question.loads, score, SCORED, "score")

    target = question.balance(scored)
    today, today_slots = question.in_use()
    before = hosts_of(today, today_slots, question.experts)
    in_use = _score("today", BalanceData(scored, today_slots), today, None)

    found = hosts_of(find_plan(question.balance(fitted), effort), question.slots, question.experts)
    # Under a budget the search has counted the moves by the GPUs' names.
    hosts = found if question.most_moves is not None else renamed(before, found, target.parts)
    plan = plan_of(hosts, question.slots)
    ours = _score("moeopt", target, plan, moves(before, hosts))

    bounds = _bounds(target)
    if (check_balance(target, plan).largest < bounds).any():
        raise MoeoptError("a map is better than its bound: report this")
    ceiling, least = _ceiling(target, bounds)
    return Advice(
        name=question.name,
        fitted=fit,
        scored=score,
        fitted_as=len(fitted),
        today=in_use,
        published=_published(question, fitted, target, before),
        moeopt=ours,
        unreplicated=_unreplicated(question, fitted, scored, before, effort),
        plan=plan,
        ceiling=ceiling,
        least_tokens=least,
        memory=_memory(question, today.shape[1]),
    )


def _merged(loads: FloatArray, windows: Windows, most: int, name: str) -> FloatArray:
    """Sum consecutive windows into at most ``most`` of about equal length."""
    first, end = windows
    if not 0 <= first < end:
        raise InputError(f"{name}: {first}:{end} has no window: FIRST must be below END")
    if end > len(loads):
        everything = f"0:{len(loads)} is all there is"
        raise InputError(f"{name}: {first}:{end} ends after the last window: {everything}")
    chosen = loads[first:end]
    parts = np.array_split(chosen, min(most, len(chosen)))
    merged = np.stack([part.sum(axis=0) for part in parts])
    if not merged.any():
        raise InputError(f"{name}: there are no tokens in windows {first} to {end}")
    return merged


def _fitted(question: Question, windows: FloatArray, effort: Effort) -> FloatArray:
    """Loads to make maps for: the fitted windows (W, L, E) one by one, or their sum.

    A map for all of them serves each, one for their sum may overfill GPUs in every single one; but
    it may also follow their noise. So maps for every other window are compared on the rest.
    """
    together = windows.sum(axis=0, keepdims=True)
    if len(windows) < _ENOUGH:
        return together
    tried, held_out = windows[::2], question.balance(windows[1::2])
    each, summed = (
        check_balance(held_out, find_plan(question.balance(loads), effort)).objective
        for loads in (tried, tried.sum(axis=0, keepdims=True))
    )
    return together if summed < each * (1 - _CLEARLY) else windows


def _score(name: str, data: BalanceData, plan: IntArray, moved: int | None) -> Score:
    # Maps of others may hold an expert twice on a GPU: their loads count all the same.
    report = check_balance(data, plan)
    if not np.isfinite(report.largest).all():
        raise InputError([f"{name}: {line}" for line in report.violations])
    return Score(name, float(report.balancedness.mean()), report.objective, moved)


def _published(
    question: Question, fitted: FloatArray, target: BalanceData, before: BoolArray
) -> Score | None:
    """Score the map of the published heuristic; None where it does not apply."""
    if len(set(question.slots.tolist())) > 1:
        return None
    nodes, groups = (question.nodes, question.groups) if target.parts > 1 else (1, 1)
    found = published_plan(
        fitted.sum(axis=0), int(question.slots.sum()), groups, nodes, question.gpus
    )
    hosts = hosts_of(found.slots, question.slots, question.experts)
    return _score("published heuristic", target, found.slots, moves(before, hosts))


def _unreplicated(
    question: Question,
    fitted: FloatArray,
    scored: FloatArray,
    before: BoolArray,
    effort: Effort,
) -> Score | None:
    """Score a map without redundant experts."""
    data = question.unreplicated(fitted)
    if data is None or data.replicas == question.slots.sum():
        return None
    found = hosts_of(find_plan(data, effort), data.slots, question.experts)
    hosts = renamed(before, found, data.parts)
    plan = plan_of(hosts, data.slots)
    return _score("moeopt, no replicas", replace(data, loads=scored), plan, moves(before, hosts))


def _bounds(target: BalanceData) -> FloatArray:
    """Tokens that the fullest GPU has under every map, shape (W, L)."""
    bounds = np.zeros((target.windows, target.layers))
    for w, l in np.ndindex(*bounds.shape):
        loads = target.loads[w : w + 1, l : l + 1]
        one = BalanceData(loads, target.slots, target.nodes, target.groups)
        bounds[w, l] = bound_layer(one, 0).value
    return bounds


def _ceiling(target: BalanceData, bounds: FloatArray) -> tuple[float, float]:
    """Balancedness that no map exceeds, and tokens on the fullest GPUs that none undercuts."""
    share = Fraction(0)
    for w, l in np.ndindex(*bounds.shape):
        mean = sum((Fraction(load) for load in target.loads[w, l].tolist()), Fraction(0))
        mean /= target.gpus
        bound = Fraction(float(bounds[w, l]))
        # Rounding may leave a bound below the mean: no balancedness is above 1.
        share += min(Fraction(1), mean / bound) if bound else Fraction(1)
    tokens = sum((Fraction(float(bound)) for bound in bounds.ravel()), Fraction(0))
    return float_above(share / bounds.size), float_below(tokens / target.windows)


def _memory(question: Question, slots_today: int) -> Memory:
    slots = int(question.slots.sum())
    redundant = (slots - question.experts) * question.layers
    if question.expert_mib is None:
        return Memory(redundant, None, None, None)
    redundant_mib = redundant * question.expert_mib
    kv_tokens = None
    if question.kv_kib_per_token:
        kv_tokens = int(redundant_mib * 1024 // question.kv_kib_per_token)
    added_mib = (slots - slots_today) * question.layers * question.expert_mib
    return Memory(redundant, redundant_mib, added_mib, kv_tokens)
