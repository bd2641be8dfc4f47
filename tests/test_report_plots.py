"""Plots: the curves are what they are said to be, and the files are files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import matplotlib.transforms as mtransforms
import numpy as np
import pytest
from make_data import random_data
from make_report_data import make_cell, make_result, make_study, nasty_study, random_study
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from moeopt.errors import InputError
from moeopt.problem import ProblemData
from moeopt.report.contests import Arena, arenas
from moeopt.report.plot_activation import plot_front as plot_activation_front
from moeopt.report.plot_front import (
    Front,
    FrontPoint,
    best_so_far,
    bound_steps,
    plot_front,
    read_front,
)
from moeopt.report.plot_gap import LEAST_GAP, MOST_PANELS, gap_steps, plot_gap
from moeopt.report.plot_heat import load_shares, plot_heat
from moeopt.report.plot_misses import plot_misses
from moeopt.report.plot_profile import LEAST_S, plot_profile, steps, time_ratios
from moeopt.report.plot_style import ENDINGS, ending_of, figure_bytes, line_style
from moeopt.solution import Solution

STARTS = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}


def contest(times: dict[str, float | None], instance: str) -> list:
    """One result for each formulation: its seconds, None where it solved nothing."""
    return [
        make_result(
            make_cell(instance, name),
            upper=1.0,
            lower=1.0 if seconds is not None else 0.5,
            total_s=60.0 if seconds is None else seconds,
        )
        for name, seconds in times.items()
    ]


# --- profiles -------------------------------------------------------------------------------------


def test_profile_by_hand() -> None:
    results = [
        *contest({"f": 1.0, "g": 4.0}, "a"),
        *contest({"f": 6.0, "g": 2.0}, "b"),
        *contest({"f": None, "g": 5.0}, "c"),
        *contest({"f": None, "g": None}, "d"),
        *contest({"f": 0.0, "g": 0.01}, "e"),
        *contest({"f": 1.0}, "left_out"),
    ]
    (arena,) = arenas(
        make_study(
            *results,
            *contest({"f": 2.0}, "skipped"),
            skipped=[(make_cell("skipped", "g"), "no")],
            missing=[make_cell("left_out", "g")],
        )
    )
    ratios = {one.formulation: values for one, values in time_ratios(arena).items()}
    assert ratios["f"] == [1.0, 1.0, 1.0, 3.0, math.inf, math.inf]
    assert ratios["g"] == [1.0, 1.0, 4.0, pytest.approx(0.01 / LEAST_S), math.inf, math.inf]


@pytest.mark.parametrize("seed", range(3))
def test_profile_is_the_share_solved_within_a_multiple(seed: int) -> None:
    (arena,) = arenas(random_study(random.Random(seed), 200))
    ratios = time_ratios(arena)
    assert min(min(values) for values in ratios.values()) == 1.0
    for values in ratios.values():
        x, y = steps(values, 50.0)
        assert x == sorted(x)
        assert y == sorted(y)
        assert x[-1] == 50.0
        for at in (1.0, 1.5, 3.0, 49.0):
            share = [height for left, height in zip(x, y, strict=True) if left <= at][-1]
            assert share == sum(ratio <= at for ratio in values) / len(values)


# --- gap over time --------------------------------------------------------------------------------


def test_gap_steps() -> None:
    trajectory = [(0.1, None, 1.0), (0.2, 4.0, 1.0), (0.5, 2.0, 1.0), (0.9, 2.0, 2.0)]
    assert gap_steps(trajectory, 3.0) == ([0.2, 0.5, 0.9, 3.0], [0.75, 0.5, LEAST_GAP, LEAST_GAP])
    assert gap_steps([(0.1, None, 1.0)], 3.0) == ([], [])
    assert gap_steps([], 3.0) == ([], [])


def many_panels(instances: int) -> Arena:
    trajectory = [(0.1, 2.0, 1.0), (2.0, 2.0, 1.5)]
    study = make_study(
        *(make_result(make_cell(f"i{i}"), trajectory=trajectory) for i in range(instances))
    )
    return arenas(study)[0]


def test_panels_left_out_are_said() -> None:
    figure = plot_gap(many_panels(MOST_PANELS + 2))
    assert "2 more panels left out" in figure.get_suptitle()
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == [f"i{i}" for i in range(MOST_PANELS)]
    assert "left out" not in plot_gap(many_panels(4)).get_suptitle()


def test_chosen_panels() -> None:
    figure = plot_gap(many_panels(4), ["i3"])
    assert [axes.get_title("left") for axes in figure.axes] == ["i3"]


# --- fronts ---------------------------------------------------------------------------------------


def test_front_steps() -> None:
    assert best_so_far([(1.0, 5.0), (2.0, None), (3.0, 4.0), (4.0, 6.0)]) == [
        (1.0, 5.0),
        (4.0, 6.0),
    ]
    # A bound at 3 holds at 2, too, where it is tighter than the one found there.
    x, y = bound_steps([(1.0, 5.0), (2.0, 9.0), (3.0, 8.0)])
    assert list(zip(x, y, strict=True)) == [(1, 5), (1, 5), (1, 8), (2, 8), (2, 8), (3, 8)]


def write_front(path: Path, points: list[dict[str, float | None]]) -> Path:
    path.write_text(json.dumps({"instance": "tiny", "unit": "us", "points": points}))
    return path


def test_fronts_are_read_and_checked(tmp_path: Path) -> None:
    good = [{"tpot_us": 2000.0, "throughput": 90.0, "bound": 100.0, "wave": 3.0}, {"tpot_us": 1.0}]
    front = read_front(write_front(tmp_path / "good.json", good))
    assert front.points[0] == FrontPoint(tpot_us=2000.0, throughput=90.0, bound=100.0)
    bad = write_front(tmp_path / "bad.json", [{"tpot_us": -1.0}, {"bound": 3.0}])
    with pytest.raises(InputError) as raised:
        read_front(bad)
    assert len(raised.value.problems) == 2
    above = write_front(
        tmp_path / "above.json", [{"tpot_us": 1.0, "throughput": 2.0, "bound": 1.0}]
    )
    with pytest.raises(InputError, match=r"points\[0\]: throughput 2.0 is above its bound 1.0"):
        read_front(above)


# --- heat maps ------------------------------------------------------------------------------------


def test_load_shares() -> None:
    data = random_data("replication", np.random.default_rng(0), experts=5, gpus=3)
    hosts = np.zeros((data.layers, 5, 3), dtype=bool)
    hosts[:, :, 0] = True
    hosts[:, 1, 2] = True
    shares = load_shares(data, Solution.from_arrays(data, hosts), 0)
    assert np.nansum(shares) == pytest.approx(100.0)
    assert (
        shares[1, 0] == shares[1, 2] == pytest.approx(50.0 * data.load[0, 1] / data.load[0].sum())
    )
    assert np.isnan(shares[:, 1]).all()


def dealt_out(experts: int, gpus: int) -> tuple[ProblemData, Solution]:
    """Expert e on GPU e mod G."""
    data = random_data("placement", np.random.default_rng(1), experts=experts, gpus=gpus)
    hosts = np.zeros((data.layers, experts, gpus), dtype=bool)
    hosts[:, np.arange(experts), np.arange(experts) % gpus] = True
    return data, Solution.from_arrays(data, hosts)


def test_heat_map_of_a_layer() -> None:
    data, solution = dealt_out(6, 3)
    image = plot_heat(data, solution).axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (3, 6)
    assert int((~np.ma.getmaskarray(np.ma.masked_invalid(image))).sum()) == 6
    figure = plot_heat(data, solution)
    figure.draw_without_rendering()
    (side,) = figure.axes[0].child_axes  # its caption is its own, not under the experts' numbers
    assert side.xaxis.label.get_window_extent().x0 >= side.get_window_extent().x0 - 0.5
    with pytest.raises(InputError, match="has no layer 99"):
        plot_heat(data, solution, 99)


# --- labels and files -----------------------------------------------------------------------------


def texts_of(figure: Figure) -> list[Text]:
    """All texts that are drawn; a tick outside of its axis is not."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    hidden: set[Text] = set()
    for axis in figure.findobj(Axis):
        least, most = sorted(axis.get_view_interval())
        seen = [t for t in axis.get_major_ticks() if least <= t.get_loc() <= most]
        drawn = {t.label1 for t in seen} | {t.label2 for t in seen}
        drawn |= {axis.label, axis.offsetText}
        hidden |= set(axis.findobj(Text)) - drawn
    return [text for text in found if text not in hidden]


MISSES = {"opt": [13, 11, 9], "lru": [13, 13, 13], "lfu": [13, 13, 13], "lru-shares": [-1, 13, 11]}


def misses_figure() -> Figure:
    misses = {name: np.array(found) for name, found in MISSES.items()}
    replayed = {name: (np.array([1, 3]), np.array([13, 13])) for name in ("fifo", "random")}
    return plot_misses(np.array([1, 2, 3]), misses, 13, "opt", "tiny", replayed=replayed)


def activation_figure() -> Figure:
    curve = [(70.0, 5.0), (90.0, 4.0), (100.0, 3.0)]
    ways = [(name, curve) for name in ("a", "b", "c", "d")]
    return plot_activation_front("tiny", "tokens a second", ways[:2], ways[2:], curve)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_front(front()),
        lambda: plot_profile(many_panels(3)),
        misses_figure,
        activation_figure,
        lambda: plot_heat(*dealt_out(5, 2)),
        lambda: plot_heat(*dealt_out(16, 4)),
    ],
    ids=["front", "profile", "misses", "activation", "heat-small", "heat"],
)
def test_no_text_is_on_another(draw: Callable[[], Figure]) -> None:
    texts = texts_of(draw())
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        for j in range(i):
            both = mtransforms.Bbox.intersection(box, boxes[j])
            over = both is not None and both.width > 0.5 and both.height > 0.5
            assert not over, (texts[i].get_text(), texts[j].get_text())


def test_misses_show_every_policy_and_ratios_can_be_read() -> None:
    figure = misses_figure()
    ratio = figure.axes[1]
    legend = ratio.get_legend()
    assert legend is not None
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {*MISSES, "fifo", "random"}
    lines = [line for line in ratio.get_lines() if line.get_label() in names]
    looks = [
        (ln.get_color(), ln.get_linestyle(), ln.get_marker(), ln.get_linewidth()) for ln in lines
    ]
    assert len(set(looks)) == len(names)
    for axes in figure.axes:
        labels = [t for t in texts_of(figure) if t in axes.get_yticklabels()]
        assert len(labels) >= 4
    # Lines drawn over each other: no two of the same dashes, or the one above is thinner.
    lru, lfu = (next(ln for ln in lines if ln.get_label() == name) for name in ("lru", "lfu"))
    assert np.array_equal(lru.get_ydata(), lfu.get_ydata())
    assert lru.get_linestyle() != lfu.get_linestyle()


def test_styles_of_lines_are_different() -> None:
    assert len({line_style(i) for i in range(28)}) == 28
    assert all(line_style(i)[1] != line_style(i + 1)[1] for i in range(27))


def front() -> Front:
    points = [FrontPoint(tpot_us=1e3 * t, throughput=9.0 * t, bound=10.0 * t) for t in (1, 2, 4)]
    return Front(instance="tiny", points=points)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_plot_is_written_alike_twice(ending: str) -> None:
    arena = next(a for a in arenas(nasty_study()) if a.problem == "placement")
    for draw in (
        lambda: plot_profile(many_panels(3)),
        lambda: plot_gap(arena),
        lambda: plot_front(front()),
    ):
        raw = figure_bytes(draw(), ending)
        assert raw.startswith(STARTS[ending])
        assert raw == figure_bytes(draw(), ending)


def test_plots_leave_no_traces() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot_profile(many_panels(3))
    assert dict(mpl.rcParams) == before


def test_names_of_plots() -> None:
    assert ending_of(Path("a.b.PDF")) == "pdf"
    with pytest.raises(InputError, match=r"ends in \.svg, \.pdf, \.png"):
        ending_of(Path("a.jpg"))
