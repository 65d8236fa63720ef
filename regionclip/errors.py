"""The one error that users see: what is wrong, what was expected, what was found, and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One contradiction in what the user gave."""

    what: str
    """The config key, file or argument that is wrong."""
    expected: str
    actual: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.actual}. Fix: {self.fix}"


class UserError(ValueError):
    """Bad input that the user can correct; the command line prints it and exits with code 2."""

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        """Make an error of one or more problems; a text is what a data loader makes of another process's error."""
        self.problems: tuple[Problem, ...] = ()
        if isinstance(problems, str):
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[UserError], tuple[Sequence[Problem] | str]]:
        """Return what another process makes it from again."""
        return type(self), (self.problems or str(self),)


def user_error(what: str, expected: str, actual: str, fix: str) -> UserError:
    """Return a `UserError` with a single problem."""
    return UserError(Problem(what, expected, actual, fix))
