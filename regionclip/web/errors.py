"""Errors of the server as JSON: what, expected, actual, fix."""

from __future__ import annotations

from typing import Any

from regionclip.errors import Problem
from regionclip.web.jobs import Answer


class RequestError(Exception):
    """A request that is refused with a status code."""

    def __init__(self, status: int, problem: Problem, headers: dict[str, str] | None = None) -> None:
        """Create an error for an HTTP status code."""
        super().__init__(str(problem))
        self.status, self.problem, self.headers = status, problem, headers or {}

    @property
    def content(self) -> dict[str, Any]:
        """Body of the answer."""
        return error_content(self.problem)


def request_error(
    status: int, what: str, expected: str, actual: str, fix: str, headers: dict[str, str] | None = None
) -> RequestError:
    """Return an error with a single problem."""
    return RequestError(status, Problem(what, expected, actual, fix), headers)


def error_content(problem: Problem) -> dict[str, Any]:
    """Return the body of an answer that is no result."""
    parts = {"what": problem.what, "expected": problem.expected, "actual": problem.actual, "fix": problem.fix}
    # What a client sent may hold half of a surrogate pair, which no encoding has.
    return {"error": {name: text.encode(errors="backslashreplace").decode() for name, text in parts.items()}}


def content_of(answer: Answer) -> dict[str, Any]:
    """Return the result of an answer; raises `RequestError` for a refusal."""
    if answer.problem is not None:
        raise RequestError(answer.status, answer.problem, {"Retry-After": "1"} if answer.status == 503 else {})
    return answer.content or {}
