"""The loads of a trace as a plot."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moeopt.report.plot_style import COLOURS, HEAT, in_style, new_axes
from moeopt.trace.showing import Measured


@in_style
def plot_skew(trace: Measured) -> Figure:
    """Draw the loads of a trace: a heat map of layers × experts, sorted, and the curves."""
    load, skew = trace.load, trace.skew
    share = np.sort(load / load.mean(axis=1, keepdims=True), axis=1)[:, ::-1]
    figure, (heat, peak, drift) = new_axes(7.0, 2.8, 1, 3)
    image = heat.imshow(share, cmap=HEAT, aspect="auto", interpolation="nearest", vmin=0)
    heat.grid(False)
    heat.set(xlabel="experts, heaviest first", ylabel="layer", title="load / mean load")
    figure.colorbar(image, ax=heat, shrink=0.9)
    layers = np.arange(len(load))
    for axes, values, colour, title in (
        (peak, skew.peak, COLOURS[0], "largest / mean load"),
        (drift, skew.drift * 100, COLOURS[1], "drift between the halves, %"),
    ):
        axes.barh(layers, values, color=colour, height=0.8)
        axes.set_ylim(heat.get_ylim())
        axes.set_axisbelow(True)
        axes.tick_params(labelleft=False, left=False)
        axes.set_title(title)
    peak.axvline(1.0, color="black", linewidth=0.6)
    return figure
