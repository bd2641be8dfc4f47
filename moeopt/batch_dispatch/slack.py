"""Whether a time can be kept at all: a search within the slack that its prices leave.

With the prices of :mod:`prices <moeopt.batch_dispatch.prices>`, GPU g pays at most its limit
``C_g`` if it ends by T, and the experts pay at least S. All waste together, that is slack below
the limits, experts on GPUs that are not their cheapest, and second activations of experts that are
split, is therefore exactly ``Σ_g C_g − payments`` ``≤ B = Σ_g C_g − S``: little, where T is near
the linear program's value. So few splits are possible, and for each choice of the GPUs that splits
join into groups, every expert goes whole to one group: a tree search that ends where a group pays
too much, or where groups cannot be filled up to what the waste allows. Nothing found: no dispatch
ends by T. The proof is in docs/dispatch.md, "Slack".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.prices import Prices, least_cost
from moeopt.batch_dispatch.slack_search import FREE, IMPOSSIBLE, MOST_SPLITS, POSSIBLE, decide
from moeopt.dispatch_time import FORMS
from moeopt.problem import IntArray

#: Limits and times are raised by this, more than the rounding of the formulas.
_SAFE = 1.0 + 1e-12
#: More experts with a choice than this are not searched.
_MOST_CHOICES = 63


@dataclass(frozen=True)
class Slack:
    """A batch with prices, prepared for questions about times.

    ``prices``; experts with a choice in compressed rows (``item``: their positions, ``first``,
    ``replica``, ``pay``); what the others pay, activate and bring to each GPU; pairs of GPUs that
    a split can join, cheapest first, with the expert to split.
    """

    batch: LayerBatch
    prices: Prices
    item: IntArray
    first: IntArray
    replica: IntArray
    pay: IntArray
    fixed: IntArray
    activated: IntArray
    tokens: IntArray
    edge: IntArray
    edge_cost: IntArray
    edge_item: IntArray


def prepare_slack(batch: LayerBatch, prices: Prices) -> Slack | None:
    """Prepare the search; None where too many experts have a choice."""
    alone = (batch.copies == 1)[batch.owner]
    item = np.flatnonzero(batch.copies > 1)
    if len(item) > _MOST_CHOICES:
        return None
    n = batch.tokens[batch.owner]
    paid = prices.activation[batch.gpu] + n * prices.token[batch.gpu]
    fixed, activated, tokens = (np.zeros(batch.gpus, dtype=np.int64) for _ in range(3))
    np.add.at(fixed, batch.gpu[alone], paid[alone])
    np.add.at(activated, batch.gpu[alone], 1)
    np.add.at(tokens, batch.gpu[alone], n[alone])
    replica = np.flatnonzero(~alone)
    first = np.concatenate([[0], np.cumsum(batch.copies[item])]).astype(np.int64)
    edges = _edges(batch, prices, paid, item)
    return Slack(
        batch, prices, item, first, replica, paid[replica], fixed, activated, tokens, *edges
    )


def _edges(
    batch: LayerBatch, prices: Prices, paid: IntArray, item: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Pairs of GPUs with a common expert, (n, 2), what the cheapest split pays more, its expert."""
    best: dict[tuple[int, int], tuple[int, int]] = {}
    activation, token = prices.activation.tolist(), prices.token.tolist()
    for e in item.tolist():
        here = range(int(batch.first[e]), int(batch.first[e + 1]))
        n = int(batch.tokens[e])
        for r in here:
            for q in range(r + 1, here.stop):
                g, h = int(batch.gpu[r]), int(batch.gpu[q])
                both = activation[g] + activation[h] + n * min(token[g], token[h])
                more = both - min(int(paid[r]), int(paid[q]))
                if n > 1 and ((g, h) not in best or more < best[g, h][0]):
                    best[g, h] = (more, e)
    ordered = sorted((cost, e, pair) for pair, (cost, e) in best.items())
    return (
        np.array([pair for _, _, pair in ordered], dtype=np.int64).reshape(-1, 2),
        np.array([cost for cost, _, _ in ordered], dtype=np.int64),
        np.array([e for _, e, _ in ordered], dtype=np.int64),
    )


def try_time(slack: Slack, time: float, nodes: int) -> tuple[int, IntArray | None, int]:
    """Whether a dispatch may end by a time.

    Parameters
    ----------
    time : float
        In us.
    nodes : int
        Steps of the search, at most.

    Returns
    -------
    answer : int
        ``IMPOSSIBLE``: a proof. ``POSSIBLE``, ``UNKNOWN``: none, nor of the contrary.
    sent : int array, shape (R,), or None
        If possible, tokens of each replica: whole experts, and a token where one is to be split.
    nodes : int
        Steps left.
    """
    batch, prices = slack.batch, slack.prices
    limit = _limits(batch, prices, time)
    priced = (prices.activation > 0) | (prices.token > 0)
    budget = int(limit[priced].sum()) - least_cost(batch, prices)
    if budget < 0:
        return IMPOSSIBLE, None, nodes
    # GPUs without a price are one group, which takes everything.
    limit = np.where(priced, limit, FREE)
    start = np.where(priced, np.cumsum(priced) - 1, int(priced.sum()))
    groups = int(start.max()) + 1
    steps, chosen = np.array([nodes]), np.zeros(len(slack.item), dtype=np.int64)
    group, joined = start.copy(), np.full(MOST_SPLITS, -1, dtype=np.int64)
    answer = decide(
        slack.first,
        batch.gpu[slack.replica],
        slack.pay,
        batch.tokens[slack.item],
        start,
        groups,
        np.where(priced, slack.fixed, 0),
        limit,
        slack.activated,
        slack.tokens,
        FORMS[batch.layer_time.form],
        batch.cost,
        time * _SAFE,
        budget,
        slack.edge,
        slack.edge_cost,
        steps,
        chosen,
        group,
        joined,
    )
    left = max(0, int(steps[0]))
    if answer != POSSIBLE:
        return answer, None, left
    return answer, _plan(slack, chosen, group, joined), left


def _limits(batch: LayerBatch, prices: Prices, time: float) -> IntArray:
    """What a GPU that ends by a time pays at most, rounded up, shape (G,)."""
    a, b, c, beta = batch.cost.tolist()
    form = batch.layer_time.form
    if form == "max":
        activations = math.floor(max(0.0, (time - a) / b) * _SAFE)
        tokens = math.floor(max(0.0, (time - c) / beta) * _SAFE)
        return prices.activation * activations + prices.token * tokens
    x, y = prices.activation / b, prices.token / beta
    norm = np.maximum(x, y) if form == "sum" else np.hypot(x, y)
    return np.ceil(max(0.0, time - a) * norm * _SAFE).astype(np.int64)


def _plan(slack: Slack, chosen: IntArray, group: IntArray, joined: IntArray) -> IntArray:
    """Whole experts in their groups, where least is paid yet; a token for each split."""
    batch = slack.batch
    sent = np.zeros(len(batch.gpu), dtype=np.int64)
    alone = (batch.copies == 1)[batch.owner]
    sent[alone] = batch.tokens[batch.owner[alone]]
    paid = slack.fixed.astype(np.float64)
    for i in np.argsort(-batch.tokens[slack.item], kind="stable").tolist():
        here = np.arange(slack.first[i], slack.first[i + 1])
        here = here[group[batch.gpu[slack.replica[here]]] == chosen[i]]
        gpu = batch.gpu[slack.replica[here]]
        at = int(np.argmin(paid[gpu] + slack.pay[here]))
        sent[slack.replica[here[at]]] = batch.tokens[slack.item[i]]
        paid[gpu[at]] += slack.pay[here[at]]
    for k in joined[joined >= 0].tolist():
        e = int(slack.edge_item[k])
        r = np.arange(batch.first[e], batch.first[e + 1])
        for to in r[np.isin(batch.gpu[r], slack.edge[k]) & (sent[r] == 0)].tolist():
            giver = int(r[np.argmax(sent[r])])
            if sent[giver] > 1:
                sent[giver] -= 1
                sent[to] = 1
    return sent
