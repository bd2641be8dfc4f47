"""The problem ``dispatch`` for one layer and one batch: a plan, a bound, a guarantee.

Where only activations or only tokens cost, a flow is the optimum. Mixed forms are NP-hard: bounds
from flows and from the linear program's prices, plans from the same flows and shares, improved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.descent import CLOSE, descend
from moeopt.batch_dispatch.flow import level
from moeopt.batch_dispatch.prices import Prices, on_grid, priced_bound, tokens_needed
from moeopt.batch_dispatch.repair import anneal, split
from moeopt.batch_dispatch.rounding import pour, rounding_guarantee, split_tokens, whole_experts
from moeopt.batch_dispatch.slack import prepare_slack, try_time
from moeopt.batch_dispatch.slack_search import IMPOSSIBLE
from moeopt.dispatch_flow import given_time
from moeopt.dispatch_kernel import RULES, layer_step
from moeopt.dispatch_time import FORMS
from moeopt.errors import MoeoptError
from moeopt.problem import FloatArray, IntArray

#: Relative gap at which a plan is good enough.
TOLERANCE = 3e-4
#: Rounds of annealing, and steps in each.
_ROUNDS, _STEPS = 2, 8000
#: Steps of the searches within the slack, together and each.
_NODES, _NODES_EACH = 16_000, 6_000
#: Bits of whole weights that stand for ``b + β n``.
_WEIGHT_BITS = 50


@dataclass(frozen=True)
class DispatchOutcome:
    """A dispatch of one batch on one layer.

    Attributes
    ----------
    assignment : list of (expert, gpu, tokens)
        Whole tokens; all of every expert.
    time : float
        Layer time, ``max_g f(A_g, N_g)``: in us, expert-time units for ``unit``.
    bound : float
        No dispatch of whole tokens, experts split or not, ends before.
    proof : str
        ``matching``, ``max-flow``, ``linear program`` or ``slack``: what the bound comes from.
    guarantee : float
        What rounding the linear program's shares cannot exceed; the time where it is optimal by a
        flow.
    """

    assignment: list[tuple[int, int, float]]
    time: float
    bound: float
    proof: str
    guarantee: float

    @property
    def gap(self) -> float:
        """(time − bound) / time; 0 for an empty batch."""
        return (self.time - self.bound) / self.time if self.time > 0 else 0.0


def dispatch_batch(batch: LayerBatch, *, seed: int = 0) -> DispatchOutcome:
    """Dispatch one batch on one layer so that the GPU that ends last ends early.

    Parameters
    ----------
    batch : LayerBatch
    seed : int
        Of the annealing of mixed forms.
    """
    f = batch.layer_time
    activated, one_each, _ = level(batch, np.ones(len(batch.tokens), dtype=np.int64))
    by_matching = np.where(one_each > 0, batch.tokens[batch.owner], 0)
    if not f.counts_tokens or not len(batch.tokens):
        return _optimal(batch, by_matching, "matching")
    tokens, by_flow, _ = level(batch, batch.tokens)
    if f.expert_us == 0:
        return _optimal(batch, by_flow, "max-flow")
    search = _Search(batch, activated, tokens, seed)
    search.offer((by_matching, by_flow, _longest_first(batch)))
    if not search.done:
        search.solve_program(by_matching, by_flow)
    return search.outcome()


def _optimal(batch: LayerBatch, sent: IntArray, proof: str) -> DispatchOutcome:
    assignment = batch.assignment(sent)
    time = given_time(batch.layer_time, assignment, batch.gpus)
    return DispatchOutcome(assignment, time, time, proof, time)


def _longest_first(batch: LayerBatch) -> IntArray:
    """Whole experts, most tokens first, each where it ends earliest; then moved and split."""
    sent = np.zeros(len(batch.gpu), dtype=np.int64)
    layer_step(
        batch.tokens,
        batch.first,
        batch.gpu,
        np.zeros(len(batch.gpu)),
        RULES["level"],
        0,
        FORMS[batch.layer_time.form],
        batch.cost,
        sent,
        np.zeros(batch.gpus),
        np.zeros(batch.gpus),
    )
    return sent


class _Search:
    """A mixed form: the best bound and plan so far."""

    def __init__(self, batch: LayerBatch, activated: int, tokens: int, seed: int) -> None:
        self.batch = batch
        self.activated, self.tokens = activated, tokens
        self.random = np.random.default_rng(seed)
        self.best: IntArray | None = None
        self.time = math.inf
        self.guarantee = math.inf
        self.prices: Prices | None = None
        self.bound, self.proof = self._by_levels()

    def _by_levels(self) -> tuple[float, str]:
        """Bound from the two levels alone.

        Some GPU activates ``activated`` replicas, each with a token at least; some GPU has
        ``tokens`` tokens, at most those of the largest expert on each replica.
        """
        f = self.batch.layer_time
        fewest = -(-self.tokens // int(self.batch.tokens.max()))
        # Lowered a little: the root of `p2` may round either way.
        shrink = 1 - 1e-12 if f.form == "p2" else 1.0
        by_matching = float(f.of(self.activated, self.activated)) * shrink
        by_flow = float(f.of(fewest, self.tokens)) * shrink
        return max((by_matching, "matching"), (by_flow, "max-flow"))

    @property
    def done(self) -> bool:
        """Whether the plan is as good as the bound."""
        return self.time <= self.bound * (1 + TOLERANCE)

    def offer(self, plans: Iterable[IntArray]) -> None:
        """Split each plan's tokens exactly over its replicas; keep the best."""
        for sent in plans:
            trial = sent.copy()
            time = split(self.batch, trial, self.bound)
            if time < self.time:
                self.best, self.time = trial, time

    def raise_bound(self, bound: float, proof: str = "linear program") -> None:
        """Keep the better bound."""
        if bound > self.bound:
            self.bound, self.proof = bound, proof

    def solve_program(self, by_matching: IntArray, by_flow: IntArray) -> None:
        """Bound and plans from the linear program; then annealing."""
        batch = self.batch
        if batch.layer_time.form == "sum":
            shares = [self._sum_shares()]
        else:
            middle = (by_matching + by_flow) / (2 * batch.tokens[batch.owner])
            share, activation, token, time = descend(batch, middle)
            self._raise_by(on_grid(batch, activation, token))
            shares = [share]
            if batch.layer_time.form == "max":
                shares += self._whole_activations(share, time)
        for share in shares:
            poured = pour(batch, share)
            self.guarantee = min(self.guarantee, rounding_guarantee(batch, poured))
            self.offer((split_tokens(batch, share), whole_experts(batch, poured)))
        self._anneal()
        self._narrow()

    def _raise_by(self, prices: Prices) -> None:
        self.prices = prices
        self.raise_bound(priced_bound(self.batch, prices))

    def _sum_shares(self) -> FloatArray:
        """``sum`` is a flow of the weights ``b + β n``, rounded down to a grid."""
        batch = self.batch
        b, beta = batch.layer_time.expert_us, batch.layer_time.token_us
        total = b * len(batch.tokens) + beta * float(batch.tokens.sum())
        scale = 2.0 ** (_WEIGHT_BITS - math.ceil(math.log2(total)))
        activation, token = math.floor(b * scale), math.floor(beta * scale)
        weight = activation + token * batch.tokens
        _, sent, cut = level(batch, weight)
        self._raise_by(Prices(activation * cut, token * cut))
        return sent / weight[batch.owner]

    def _whole_activations(self, share: FloatArray, time: float) -> list[FloatArray]:
        """``max``: activations are whole, so a GPU has at most K of them or one at least K + 1.

        K is the largest number that the linear program's value allows. The least tokens with at
        most K are another program: ``max(b (A − K), β N − v) ≤ 0`` for v as small as possible.
        """
        batch = self.batch
        f = batch.layer_time
        most = math.floor((time * (1 - 2 * CLOSE) - f.base_us) / f.expert_us)
        more = float(f.of(most + 1, self.tokens))
        if most < self.activated:
            self.raise_bound(more)
            return []
        needed = max(self.tokens, math.floor((self.bound - f.token_base_us) / f.token_us))
        for _ in range(2):
            cost = np.array([-f.expert_us * most, f.expert_us, -f.token_us * needed, f.token_us])
            share, activation, token, over = descend(batch, share, cost)
            self.prices = on_grid(batch, activation, token)
            found = max(needed, tokens_needed(batch, self.prices, most))
            self.raise_bound(min(more, float(f.of(self.activated, found))))
            if over <= CLOSE * self.bound or found == needed or f.of(most, found) > more:
                break
            needed = found
        return [share]

    def _anneal(self) -> None:
        portion = 0.0
        for _ in range(_ROUNDS):
            if self.done:
                return
            assert self.best is not None
            sent = self.best.copy()
            target = self.bound + portion * (self.time - self.bound)
            before = self.time
            anneal(self.batch, sent, target, _STEPS, self.random)
            self.offer((sent,))
            portion = 0.5 if self.time < before else 0.5 + portion / 2

    def _narrow(self) -> None:
        """Halve the gap again and again: a time is impossible, or perhaps a plan has it."""
        if self.done or self.prices is None:
            return
        slack = prepare_slack(self.batch, self.prices)
        high, nodes = self.time, _NODES
        while slack is not None and nodes > 0 and high > self.bound * (1 + TOLERANCE):
            time = (self.bound + high) / 2
            limit = min(nodes, _NODES_EACH)
            answer, sent, left = try_time(slack, time, limit)
            nodes -= limit - left
            if answer == IMPOSSIBLE:
                self.raise_bound(time, "slack")
                continue
            high = time
            if sent is not None:
                self.offer((sent,))

    def outcome(self) -> DispatchOutcome:
        """Evaluate the best plan as the checker does."""
        assert self.best is not None
        assignment = self.batch.assignment(self.best)
        time = given_time(self.batch.layer_time, assignment, self.batch.gpus)
        if self.bound > time:
            raise MoeoptError(f"a lower bound exceeds a plan: {self.bound!r} > {time!r}")
        guarantee = time if math.isinf(self.guarantee) else self.guarantee
        return DispatchOutcome(assignment, time, self.bound, self.proof, guarantee)
