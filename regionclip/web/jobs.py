"""What the server asks a worker process for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from regionclip.errors import Problem

BAD_REQUEST, TOO_LARGE, UNUSABLE, FAILED, BUSY = 400, 413, 422, 500, 503
"""HTTP status codes of answers that are not results."""


@dataclass(frozen=True)
class Job:
    """Detection in an image, or embeddings of words or boxes."""

    kind: Literal["detect", "embed"]
    image: bytes = b""
    """Encoded file; empty for embeddings of words."""
    words: tuple[tuple[str, ...], ...] = ()
    """Synonyms of each class name."""
    vocabulary: str = ""
    """Name of a vocabulary, instead of words."""
    boxes: tuple[tuple[float, ...], ...] | None = None
    """User boxes x1 y1 x2 y2 in pixels; None detects."""
    threshold: float | None = None
    topk: int | None = None
    words_per_box: int = 0
    per_class: bool = False
    use_background: bool = True
    """Whether the detector's default vocabulary shares the softmax."""


@dataclass(frozen=True)
class Answer:
    """Result of a job, or why there is none."""

    content: dict[str, Any] | None = None
    status: int = 200
    problem: Problem | None = None


def refusal(status: int, what: str, expected: str, actual: str, fix: str) -> Answer:
    """Return the answer to a job that cannot be done."""
    return Answer(None, status, Problem(what, expected, actual, fix))


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker loads, and what it accepts."""

    model: str
    device: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `RegionCLIP.from_pretrained`."""
    vocabularies: dict[str, str] = field(default_factory=dict)
    """File or list of class names by the name that clients use."""
    max_pixels: int = 50_000_000
    threads: int = 0
    """Of torch; 0 keeps its own number."""
