"""The errors that people see: one clear line for each problem."""

from __future__ import annotations

from collections.abc import Iterable


class MoeoptError(Exception):
    """Base of every error that ``moeopt`` raises on purpose.

    Parameters
    ----------
    problems : str or iterable of str
        One line for each problem, in the user's words.
    """

    #: Exit status of the command line when this error ends it.
    exit_status = 3

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.problems,)


class InputError(MoeoptError):
    """A file, name or option given by the user does not fit (exit status 2)."""

    exit_status = 2


class SolverError(MoeoptError):
    """A solver or its worker process failed (exit status 3)."""

    exit_status = 3
