"""Misses of a cache of experts against its size."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from moeopt.paging.requests import IntArray
from moeopt.report.plot_style import in_style, line_style, log_axis, new_axes


@in_style
def plot_misses(
    sizes: IntArray, misses: Mapping[str, IntArray], uses: int, optimum: str, title: str
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
    """
    figure, (share, ratio) = new_axes(7.4, 3.2, 1, 2)
    bound = misses[optimum]
    for i, name in enumerate([optimum, *(n for n in misses if n != optimum)]):
        possible = misses[name] >= 0
        colour, dashes = ("black", "-") if name == optimum else line_style(i - 1)
        width = 2.0 if name == optimum else 1.2
        x, over = sizes[possible], misses[name][possible] / bound[possible]
        share.plot(x, misses[name][possible] / uses, color=colour, ls=dashes, lw=width)
        ratio.plot(x, over, color=colour, ls=dashes, lw=width, label=name)
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
    rest = [n for n in misses if n not in order]
    ratio.legend(
        [handles[n] for n in order + rest],
        order + rest,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=7,
    )
    return figure
