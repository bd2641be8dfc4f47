"""Misses of a cache of experts against its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moeopt.paging.requests import IntArray
from moeopt.report.plot_style import (
    COLOURS,
    DASHES,
    in_style,
    line_order,
    line_style,
    log_axis,
    new_axes,
)

#: Marks of what is known at some sizes only.
_MARKS = ("x", "+", "v", "^")


@in_style
def plot_misses(
    sizes: IntArray,
    misses: Mapping[str, IntArray],
    uses: int,
    optimum: str,
    title: str,
    *,
    replayed: Mapping[str, tuple[IntArray, IntArray]] | None = None,
) -> Figure:
    """Draw the share of uses that miss, and misses over the offline optimum, by cache size.

    Parameters
    ----------
    sizes : int array, shape (n,)
        Experts in the cache, ascending.
    misses : mapping of str to int array, shape (n,)
        By policy, ``optimum`` among them; −1 where a policy cannot serve the requests.
    uses : int
        Uses of experts in all.
    optimum : str
        The policy that bounds the others.
    replayed : mapping of str to two int arrays, optional
        Policies that are known at some of the sizes only: those sizes, and misses, as above.
    """
    figure, (share, ratio) = new_axes(7.4, 3.2, 1, 2)
    bound = misses[optimum]
    others = [n for n in misses if n != optimum]
    at_some = replayed or {}
    known = {name: (sizes, found) for name, found in misses.items()} | dict(at_some)
    for i, name in enumerate([*others, *at_some, optimum]):
        possible = known[name][1] >= 0
        x, found = known[name][0][possible], known[name][1][possible]
        style = _style(i, name in at_some) if name != optimum else {"color": "black", "lw": 2.0}
        share.plot(x, found / uses, **style)
        ratio.plot(x, found / bound[np.searchsorted(sizes, x)], label=name, **style)
    share.set(xlabel="experts in the cache", title=title, yscale="log")
    share.set_ylabel("misses / uses")
    log_axis(share.yaxis)
    ratio.set(xlabel="experts in the cache", title="misses / offline optimum", yscale="log")
    log_axis(ratio.yaxis)
    # Names in the order of the lines where these are far apart.
    at = 3 * len(sizes) // 4
    order = sorted(
        (n for n in misses if misses[n][at] >= 0), key=lambda n: misses[n][at], reverse=True
    )
    handles = {line.get_label(): line for line in ratio.get_lines()}
    rest = [n for n in (*misses, *at_some) if n not in order]
    ratio.legend(
        [handles[n] for n in order + rest],
        order + rest,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=7,
    )
    return figure


def _style(i: int, marks: bool) -> dict[str, Any]:
    """Policies often miss the same: what is below shows between dashes, or is the wider line."""
    if marks:
        colour = COLOURS[i % (len(COLOURS) - 1)]  # black is the optimum's
        return {"color": colour, "ls": "", "marker": _MARKS[i % len(_MARKS)], "ms": 4, "zorder": 4}
    colour, dashes = line_style(i)
    again = i // len(DASHES)
    width = max(0.8, 1.8 - 0.7 * again)
    return {"color": colour, "ls": dashes, "lw": width, "zorder": line_order(i) + 0.05 * again}
