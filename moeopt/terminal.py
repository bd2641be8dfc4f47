"""Tables and lines for people: folded to the width of a terminal, in full where they are piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

#: Cells of at most so many characters are never folded: "< 0.0001 %" stays on one line.
_SHORT = 14
#: Longer words (addresses, paths) may be cut where there is no room.
_LONG_WORD = 40
#: A column of names gets as much as this; last words that would get less stand below their row.
_LEAST_WORDS = 30
_BETWEEN = 2
_INDENT = "  "

Row = Sequence[str]


@dataclass(frozen=True)
class Block:
    """Columns that are printed side by side.

    Attributes
    ----------
    columns : tuple of int
        Their positions in the table.
    widths : tuple of int
        Characters of each.
    below : int or None
        A column that is printed in lines of its own, below its row.
    """

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    below: int | None = None


def console() -> Console:
    """Return standard output, printing text as it is: brackets and colons are no markup."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_text(text: RenderableType, *, style: str | None = None) -> None:
    """Print a line, or anything that rich prints; piped output ends without spaces.

    On a terminal a line is folded between words, in a pipe it stays one line.
    """
    out = console()
    if sys.stdout.isatty():
        out.print(text, style=style, soft_wrap=False)
        return
    _write_stripped(out, text, style)


def print_table(
    headings: Row,
    rows: Sequence[Row],
    *,
    keys: int = 1,
    right: Sequence[int] = (),
    title: str | None = None,
    boxed: bool = False,
) -> None:
    """Print a table in full; on a terminal it is folded so that no line is longer.

    Parameters
    ----------
    keys : int
        So many first columns name a row: they are repeated where the others are printed in blocks.
    right : sequence of int
        Columns of numbers, flush right.
    boxed : bool
        With lines around it, where there is room for them.
    """
    out = console()
    room = out.width if sys.stdout.isatty() else None
    needed = sum(_natural(headings, rows)) + 3 * len(headings) + 1
    if boxed and (room is None or needed <= room):
        table = Table(title=title, box=box.HEAVY_HEAD)
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i in right else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        # Rich takes 80 columns for the width of a pipe.
        wide = Console(highlight=False, markup=False, emoji=False, width=max(needed, room or 0))
        _write_stripped(wide, table)
        return
    if title is not None:
        print_text(title, style="italic")
    for number, block in enumerate(blocks(headings, rows, room, keys)):
        if number:
            print_text("")
        for i, row in enumerate([headings, *rows]):
            for line in _lines(row, block, right, room):
                out.print(Text(line, style="" if i else "bold"))


def blocks(headings: Row, rows: Sequence[Row], room: int | None, keys: int = 1) -> list[Block]:
    """Divide a table into blocks, none wider than ``room`` characters; None: as wide as it is.

    What is tried first reads best: all side by side, cells of words folded; the last column below
    its row; blocks of columns, each with the first ``keys`` columns. Numbers are never broken
    unless the room is less than the keys and one of them take.
    """
    natural = _natural(headings, rows)
    every = tuple(range(len(headings)))
    if room is None or _total(natural) <= room:
        return [Block(every, tuple(natural))]
    least = [_least(headings[i], [row[i] for row in rows]) for i in every]
    last = every[-1]
    worded = any(" " in row[last] and cell_len(row[last]) > _SHORT for row in rows)
    for i in (*every[:keys], *([last] if worded else [])):
        least[i] = max(least[i], min(natural[i], _LEAST_WORDS))
    if _total(least) <= room:
        return [_block(every, natural, least, room)]
    if worded and _total(least[:-1]) <= room:
        block = _block(every[:-1], natural, least, room)
        return [Block(block.columns, block.widths, last)]
    found: list[tuple[int, ...]] = []
    for column in every[keys:]:
        if found and _total([least[i] for i in (*found[-1], column)]) <= room:
            found[-1] += (column,)
        else:
            found.append((*every[:keys], column))
    return [_block(columns, natural, least, room) for columns in found or [every]]


def _write_stripped(out: Console, printed: RenderableType, style: str | None = None) -> None:
    """Write what rich prints, without the spaces at the ends of its lines."""
    with out.capture() as captured:
        out.print(printed, style=style)
    sys.stdout.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))


def _block(
    columns: tuple[int, ...], natural: Sequence[int], least: Sequence[int], room: int
) -> Block:
    """Take from the widest column what is too much: down to its least, then from all of them."""
    widths = [natural[i] for i in columns]
    for floors in ([least[i] for i in columns], [1] * len(columns)):
        while _total(widths) > room:
            able = [i for i, floor in enumerate(floors) if widths[i] > floor]
            if not able:
                break
            widths[max(able, key=lambda i: widths[i])] -= 1
    return Block(columns, tuple(widths))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _natural(headings: Row, rows: Sequence[Row]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]


def _least(heading: str, cells: Sequence[str]) -> int:
    """Width below which a heading's word, a number or a name would be broken."""
    widths = [cell_len(word) for word in heading.split()]
    names = not any(" " in cell for cell in cells)
    for cell in cells:
        whole = names or cell_len(cell) <= _SHORT
        words = [cell_len(cell)] if whole else [cell_len(word) for word in cell.split()]
        widths += words if names else [min(width, _LONG_WORD) for width in words]
    return max(widths, default=0)


def _lines(row: Row, block: Block, right: Sequence[int], room: int | None) -> list[str]:
    """Return a row as lines without spaces at their ends."""
    cells = [_folded(row[i], width) for i, width in zip(block.columns, block.widths, strict=True)]
    lines = []
    for k in range(max(map(len, cells))):
        parts = []
        for i, cell, width in zip(block.columns, cells, block.widths, strict=True):
            part = cell[k] if k < len(cell) else ""
            pad = " " * (width - cell_len(part)) if i in right else ""
            parts.append(set_cell_size(pad + part, width))
        lines.append((" " * _BETWEEN).join(parts).rstrip(" "))
    if block.below is not None and room is not None and row[block.below]:
        width = max(1, room - len(_INDENT))
        lines += [_INDENT + line for line in _folded(row[block.below], width)]
    return lines


def _folded(cell: str, width: int) -> list[str]:
    if cell_len(cell) <= width:
        return [cell]
    wrapped = Text(cell).wrap(console(), max(1, width), overflow="fold")
    return [line.plain.rstrip(" ") for line in wrapped]
