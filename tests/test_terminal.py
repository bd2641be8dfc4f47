"""Tables: no line wider than a terminal, no number broken or left out; pipes get them in full."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from moeopt.commands.fronting import _change
from moeopt.comparing import Comparison
from moeopt.listing import formulations, instances
from moeopt.summary import print_comparison, print_rows
from moeopt.terminal import blocks, print_table, print_text


class Terminal(io.StringIO):
    """Standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue()).splitlines()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal of 80 columns, to stand in for standard output."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


CELL = Comparison(
    instance="smoke",
    formulation="replication_matching_ordered",
    kind="exact",
    solver="cpsat",
    rows=123_456,
    columns=2_345_678,
    nonzeros=34_567_890,
    lp_bound=0.999999,
    root_bound=1.09999,
    lower_bound=1.09998,
    upper_bound=1.1,
    gap=2e-7,
    nodes=98_765,
    seconds=12.3,
)
SHOWN = (
    "123,456",
    "2,345,678",
    "34,567,890",
    "0.999999",
    "1.09999",
    "1.09998",
    "1.1",
    "< 0.0001 %",
    "98,765",
    "12.3",
)
GRACE = [
    {
        "grouping": "affinity-balanced",
        "replication": f"rule{i}",
        "routing": "grace",
        **{f"measured number {j}": f"{1.5 + i + j / 1000:.3f}" for j in range(10)},
    }
    for i in range(3)
]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120])
def test_comparison_fits_every_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with redirect_stdout(terminal):
        print_comparison([CELL, replace(CELL, solver="highs", rows=77_001)])
    assert max(map(len, terminal.lines)) <= columns
    if columns >= 60:  # the names and the widest number fit
        rows = [line for line in terminal.lines if "cpsat" in line]
        for number in SHOWN:
            assert any(f" {number} " in f"{row} " for row in rows), number


def test_numbers_of_many_columns_stay_with_the_names_of_their_rows(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        print_rows(GRACE, keys=3)
    assert max(map(len, terminal.lines)) <= 80
    for i, row in enumerate(GRACE):
        named = " ".join(line for line in terminal.lines if f"  rule{i}  " in line).split()
        assert set(row.values()) <= set(named)


@pytest.mark.parametrize("listing", [formulations, instances])
def test_lists_keep_every_word(terminal: Terminal, listing: object) -> None:
    rows = listing()  # type: ignore[operator]
    with redirect_stdout(terminal):
        print_rows(rows)
    assert max(map(len, terminal.lines)) <= 80
    assert all(any(next(iter(row.values())) in line for line in terminal.lines) for row in rows)
    words = sorted(terminal.getvalue().replace("\x1b[1m", " ").replace("\x1b[0m", " ").split())
    given = [heading.replace("_", " ") for heading in rows[0]]
    given += [value for row in rows for value in row.values()]
    assert words == sorted(" ".join(given).split())


def test_words_fold_beside_their_row_where_there_is_room_for_them(terminal: Terminal) -> None:
    proof = "branch and bound over the hosts of each expert, or over what each GPU lacks"
    with redirect_stdout(terminal):
        print_table(["method", "bound", "proof"], [["pairs", "1.09999999", proof]], boxed=True)
    assert terminal.lines[1].startswith("pairs   1.09999999  branch and bound")
    assert terminal.lines[2].startswith(" " * 20)


def test_a_long_word_is_cut_only_where_it_must_be() -> None:
    headings, rows = ["a", "b"], [["1", "x" * 50 + " y"]]
    assert blocks(headings, rows, 60)[0].widths == (1, 52)
    (narrow,) = blocks(headings, rows, 30)
    assert sum(narrow.widths) + 2 <= 30


def test_pipes_get_the_whole_table_without_spaces_at_the_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_rows([*GRACE, dict.fromkeys(GRACE[0], "")], keys=3)
    print_text("[brackets] and :colons: are printed as they are, " + "however long a line is, " * 3)
    print_comparison([CELL])
    text = capsys.readouterr().out
    assert not re.search(r" $", text, re.MULTILINE)
    lines = text.splitlines()
    assert lines[1].split() == list(GRACE[0].values())
    assert len(lines[5]) > 110
    assert lines[5].startswith("[brackets] and :colons:")
    assert any(all(number in line for number in SHOWN) for line in lines)


def test_no_change_is_printed_as_0() -> None:
    assert _change((-2.098e-5, 2.098e-5), 22_344.231) == "0"
    assert _change((-0.0099, 0.0099), 22_344.231) == "0"
    assert _change((-0.011, 0.011), 22_344.231) == "-0.011 to 0.011"
    assert _change((293.12345, 293.14), 22_344.231) == "293.1 to 293.2"
