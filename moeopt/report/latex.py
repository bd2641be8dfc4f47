"""Tables as LaTeX: booktabs, one float each; they compile unchanged in an article."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from moeopt.report.table import Column, Row, Table

#: Rows of one float; longer tables continue in the next one.
ROWS_PER_FLOAT = 40

#: Characters of a heading above numbers that lies flat.
_LONG_NAME = 14

#: A table wider than the text is scaled down to it.
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"

#: One of so many columns could not be read at the width of the text: it stands upright instead.
_UPRIGHT_FROM = 14
_FIT_UPRIGHT = (
    r"\rotatebox{90}{\resizebox{\ifdim\width>.75\textheight.75\textheight\else\width\fi}{!}{%"
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "∞": r"$\infty$",
    "∑": r"$\sum$",
    "→": r"$\to$",
    "µ": r"\textmu{}",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "’": "'",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "\N{NO-BREAK SPACE}": "~",
}
#: Those that LaTeX puts on a letter in every font encoding.
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
_GREEK_LETTERS = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)  # fmt: skip
_GREEK_CAPITALS = (
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
)  # fmt: skip


def escape(text: str) -> str:
    """Return a text that LaTeX prints as it is.

    Latin letters with and without accents pass, Greek ones and signs become commands; any other
    character is printed as its number (``U+2603``): a name that cannot be printed is better than a
    file that cannot be compiled.
    """
    return "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char.isspace():
        return " "
    if not char.isprintable():
        return _number(char)
    parts = unicodedata.normalize("NFD", char)
    # Latin-1 and Latin Extended-A are set up for every font encoding, letters beyond them are not.
    if ord(char) < 0x180 and parts[0].isascii() and all(accent in _ACCENTS for accent in parts[1:]):
        return char
    # Their Unicode names: GREEK SMALL LETTER OMEGA; lambda is spelt as it is pronounced.
    script, _, name = unicodedata.name(char, "").replace("LAMDA", "LAMBDA").partition(" LETTER ")
    if script == "GREEK SMALL" and name.lower() in _GREEK_LETTERS:
        return f"$\\{name.lower()}$"
    if script == "GREEK CAPITAL" and name.capitalize() in _GREEK_CAPITALS:
        return f"$\\{name.capitalize()}$"
    return _number(char)


def _number(char: str) -> str:
    return f"U+{ord(char):04X}"


def latex(tables: Sequence[Table]) -> str:
    r"""Return tables as LaTeX floats, to be read by ``\input``."""
    head = "% Needs \\usepackage{booktabs,graphicx}.\n"
    return head + "\n".join(line for table in tables for line in _floats(table)) + "\n"


def _floats(table: Table) -> Iterator[str]:
    parts = range(0, max(1, len(table.rows)), ROWS_PER_FLOAT)
    for start in parts:
        rows = table.rows[start : start + ROWS_PER_FLOAT]
        last = start == parts[-1]
        yield from _float(table, rows, continued=start > 0, notes=table.notes if last else ())


def _float(
    table: Table, rows: Sequence[Row], *, continued: bool, notes: Sequence[str]
) -> Iterator[str]:
    yield r"\begin{table}[htbp]"
    yield r"\centering"
    if continued:
        yield r"\addtocounter{table}{-1}"
        yield rf"\caption{{{escape(table.title)} (continued)}}"
    else:
        caption = " ".join(map(escape, table.caption))
        text = rf"{escape(table.title)}. {{\footnotesize {caption}}}"
        yield rf"\caption[{escape(table.title)}]{{{text}}}"
        yield rf"\label{{tab:{table.name}}}"
    yield r"\par\medskip\small"
    upright = len(table.columns) >= _UPRIGHT_FROM
    yield _FIT_UPRIGHT if upright else _FIT
    yield rf"\begin{{tabular}}{{@{{}}{''.join('lr'[c.is_number] for c in table.columns)}@{{}}}}"
    yield r"\toprule"
    yield from _headings(table)
    yield r"\midrule"
    for row in rows:
        yield " & ".join(map(escape, row)) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}}" + "}" * upright
    if notes:
        yield r"\par\medskip\begin{minipage}{\linewidth}\footnotesize\raggedright"
        yield "\\\\\n".join(map(escape, notes))
        yield r"\end{minipage}"
    yield r"\end{table}"


def _headings(table: Table) -> Iterator[str]:
    groups = table.heading_groups
    if any(name for name, _ in groups):
        yield (
            " & ".join(
                rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" if name else "&" * (size - 1)
                for name, size in groups
            )
            + r" \\"
        )
        column, rules = 1, []
        for name, size in groups:
            if name:
                rules.append(rf"\cmidrule(lr){{{column}-{column + size - 1}}}")
            column += size
        yield "".join(rules)
    yield " & ".join(map(_heading, table.columns)) + r" \\"


def _heading(column: Column) -> str:
    # A name far longer than the numbers below it stands upright: width is what a page lacks.
    text = escape(column.name)
    upright = column.is_number and len(column.name) > _LONG_NAME
    return rf"\rotatebox{{90}}{{{text}\,}}" if upright else text
