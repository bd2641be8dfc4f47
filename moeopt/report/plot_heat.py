"""Heat map of a plan: which GPU holds which expert, and with how much load."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from moeopt.errors import InputError
from moeopt.problem import ProblemData
from moeopt.report.plot_style import COLOURS, HEAT, in_style, new_axes
from moeopt.solution import Solution

#: More experts than this are not numbered one by one.
_NUMBERED = 40


def load_shares(data: ProblemData, solution: Solution, layer: int) -> npt.NDArray[np.float64]:
    """Return the percent of a layer's tokens on each replica, shape (E, G), NaN elsewhere.

    An expert's tokens are split evenly over its replicas: the load is an average over scenarios,
    for which a plan states no dispatch.
    """
    hosts = solution.hosts_array(data.gpus)[layer]
    load = data.load[layer] / data.load[layer].sum() * 100.0
    replicas = np.maximum(hosts.sum(axis=1), 1)
    return np.where(hosts, (load / replicas)[:, None], np.nan)


@in_style
def plot_heat(data: ProblemData, solution: Solution, layer: int | None = None) -> Figure:
    """Draw one layer of a plan.

    Parameters
    ----------
    data : ProblemData
        Of the solution's problem.
    layer : int, optional
        The layer's number in the LLM; default: the first one of the instance.

    Raises
    ------
    InputError
        The instance has no such layer.
    """
    numbers = data.layer_numbers or tuple(range(data.layers))
    if layer is None:
        layer = numbers[0]
    if layer not in numbers:
        shown = ", ".join(map(str, numbers))
        raise InputError(f"{data.name} has no layer {layer}; its layers are {shown}")
    shares = load_shares(data, solution, numbers.index(layer))
    order = np.argsort(-np.nansum(shares, axis=1), kind="stable")
    experts, gpus = shares.shape
    figure, (axes,) = new_axes(min(7.0, 3.4 + 0.05 * experts), 1.3 + 0.19 * gpus)
    image = axes.imshow(
        shares[order].T, cmap=HEAT, vmin=0.0, aspect="auto", interpolation="nearest"
    )
    axes.grid(False)
    axes.set_facecolor("#f4f4f4")
    axes.set_yticks(range(gpus), [str(g) for g in range(gpus)])
    axes.set_ylabel("GPU")
    if experts <= _NUMBERED:
        axes.set_xticks(range(experts), [str(e) for e in order], fontsize=6)
    axes.set_xlabel("experts, heaviest first")
    for edge in np.arange(gpus - 1) + 0.5:
        axes.axhline(edge, color="white", linewidth=1.5)
    bar = figure.colorbar(image, ax=axes, location="top", shrink=0.6, aspect=40, anchor=(0.0, 0.0))
    bar.set_label("tokens of a replica, % of the layer", loc="left")
    bar.outline.set_visible(False)
    figure.suptitle(f"{data.name}, {data.problem}, layer {layer}", x=0.01, ha="left", fontsize=8)
    totals = np.nansum(shares, axis=0)
    side = axes.inset_axes((1.03, 0.0, 0.25, 1.0), sharey=axes)
    side.barh(range(gpus), totals, color=COLOURS[0], height=0.6)
    side.axvline(100.0 / gpus, color=COLOURS[1], linewidth=1.0)
    side.tick_params(labelleft=False, left=False)
    side.spines[["top", "right", "left"]].set_visible(False)
    side.grid(False)
    # From the left edge on: centred, it would reach under the numbers of the experts.
    side.set_xlabel("% in all; line: even", fontsize=7, loc="left")
    most = totals.max()
    for g, total in enumerate(totals):
        inside = total > 0.4 * most
        at, colour = (0.03 * most, "white") if inside else (total + 0.03 * most, "black")
        paper = None if inside else {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        side.text(at, g, f"{total:.1f}", va="center", fontsize=6, color=colour, bbox=paper)
    side.set_xlim(0, 1.03 * max(most, 100.0 / gpus))
    side.xaxis.set_ticks([])
    return figure
