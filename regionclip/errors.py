"""The error type for users: what is wrong, what was expected, what was found, and the fix."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem in the user's input."""

    what: str
    """The invalid config key, file or argument."""
    expected: str
    actual: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.actual}. Fix: {self.fix}"


class UserError(ValueError):
    """Invalid input that the user can correct; the command line prints it and exits with code 2."""

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        """Create an error of one or more problems; data loaders recreate another process's error from its text."""
        self.problems: tuple[Problem, ...] = ()
        if isinstance(problems, str):
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[UserError], tuple[Sequence[Problem] | str]]:
        """Return the arguments for unpickling in another process."""
        return type(self), (self.problems or str(self),)


def user_error(what: str, expected: str, actual: str, fix: str) -> UserError:
    """Return a `UserError` with a single problem."""
    return UserError(Problem(what, expected, actual, fix))


_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


def system_error(error: BaseException) -> OSError | None:
    """Return the `OSError` behind an error: the error itself, or the one that torch wrapped."""
    chain: BaseException | None = error if isinstance(error, OSError | RuntimeError) else None
    while chain is not None and not (isinstance(chain, OSError) and chain.errno is not None):
        chain = chain.__cause__ or chain.__context__
    return chain


def system_problem(error: OSError) -> Problem:
    """Return an error of the operating system as a problem with its fix."""
    expected, fix = "a file that can be read and written", "check the path and the disk, then give the command again"
    if error.errno in _SPACE:
        expected, fix = "space to write", "free some, or write to another disk; then give the command again"
    elif error.errno in _PERMISSION:
        expected, fix = "permission to read and write", "name another file or folder, or change its permissions"
    elif error.errno in _TOO_MANY_FILES:
        expected, fix = "files that can be opened", "raise the limit of open files (ulimit -n)"
    return Problem(str(error.filename or "a file"), expected, error.strerror or str(error), fix)
