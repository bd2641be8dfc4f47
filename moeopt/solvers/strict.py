"""What to say when a solver does not know an option."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_option(solver: str, name: str, known: Iterable[str]) -> str:
    """Return one line that names the unknown option and the closest known ones."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{solver} has no option {name!r}{hint}"
