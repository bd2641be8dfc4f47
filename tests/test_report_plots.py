"""Plots: the curves are what they are said to be, and the files are files."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_data import random_data
from make_report_data import make_cell, make_result, make_study, nasty_study, random_study

from moeopt.errors import InputError
from moeopt.report.contests import Arena, arenas
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
from moeopt.report.plot_profile import LEAST_S, plot_profile, steps, time_ratios
from moeopt.report.plot_style import ENDINGS, ending_of, figure_bytes, spread
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


def test_heat_map_of_a_layer() -> None:
    data = random_data("placement", np.random.default_rng(1), experts=6, gpus=3)
    hosts = np.zeros((data.layers, 6, 3), dtype=bool)
    hosts[:, np.arange(6), np.arange(6) % 3] = True
    solution = Solution.from_arrays(data, hosts)
    image = plot_heat(data, solution).axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (3, 6)
    assert int((~np.ma.getmaskarray(np.ma.masked_invalid(image))).sum()) == 6
    with pytest.raises(InputError, match="has no layer 99"):
        plot_heat(data, solution, 99)


# --- labels and files -----------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_labels_do_not_overlap(wanted: list[float]) -> None:
    least = 0.06
    heights = spread(wanted, least)
    assert max(heights) <= 1.0
    ordered = [heights[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert all(b - a >= least - 1e-9 for a, b in pairwise(ordered))
    apart = sorted(wanted)
    if all(b - a >= least for a, b in pairwise(apart)):
        assert heights == pytest.approx(wanted)


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
