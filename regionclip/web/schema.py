"""Requests of the server, as JSON or as forms, checked before they reach a worker."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regionclip.clip.class_name_files import split_synonyms
from regionclip.web.errors import RequestError, request_error
from regionclip.web.guards import Limits
from regionclip.web.jobs import Job

MAX_LETTERS = 500
"""Letters of a word with its synonyms: tokenizing takes the square of the length."""

WORDS = "Class names: a list, or one text with commas; | separates synonyms."


class DetectRequest(BaseModel):
    """What `POST /detect` takes."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field("", description="Base64 of the file; in a form, the file itself.")
    url: str = Field("", description="Address of the image, where the server allows it.")
    words: str | list[str] = Field("", description=WORDS)
    vocabulary: str = Field("", description="Name of a vocabulary of the server (GET /health), instead of words.")
    threshold: float | None = Field(None, description="Minimum score.", allow_inf_nan=False)
    topk: int | None = Field(None, ge=1, le=100_000, description="Most detections.")
    boxes: list[list[float]] | None = Field(None, description="x1 y1 x2 y2 in pixels, to be named; none are detected.")
    words_per_box: int = Field(0, ge=0, le=20, description="Most probable words of each box that are returned too.")
    per_class: bool = Field(False, description="Suppress duplicates only within each class.")
    background: bool = Field(True, description="Whether the vocabulary of the detector shares the score.")


class EmbedRequest(BaseModel):
    """What `POST /embed` takes: words, or an image with or without boxes."""

    model_config = ConfigDict(extra="forbid")

    words: str | list[str] = Field("", description=WORDS)
    image: str = Field("", description="Base64 of the file; in a form, the file itself.")
    url: str = Field("", description="Address of the image, where the server allows it.")
    boxes: list[list[float]] | None = Field(None, description="x1 y1 x2 y2 in pixels; without, the whole image.")


def parse(kind: type[BaseModel], values: dict[str, Any], limits: Limits) -> Any:
    """Return a request of JSON values; raises `RequestError` 422 that names the field."""
    # Before pydantic, which notes every wrong entry of a list.
    for name, most in (("words", limits.words), ("boxes", limits.boxes)):
        if isinstance(values.get(name), list) and len(values[name]) > most:
            raise request_error(422, name, f"at most {most}", str(len(values[name])), "send fewer")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "request"
        actual = repr(first.get("input"))[:100]
        raise request_error(422, name, first["msg"].lower(), actual, "see /docs for the fields") from error


def from_form(fields: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a form as JSON values: numbers, lists and truth values are written as in JSON."""
    values: dict[str, Any] = {}
    for name, text in fields.items():
        is_text = name in ("url", "vocabulary") or (name == "words" and not text.lstrip().startswith("["))
        try:
            values[name] = text if is_text else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise request_error(
                422, name, "a value as in JSON", repr(text[:100]), "see /docs for the fields"
            ) from error
    return values


def image_bytes(request: DetectRequest | EmbedRequest) -> bytes:
    """Return the decoded image of a request; empty if it has none."""
    try:
        return base64.b64decode(request.image.partition(";base64,")[2] or request.image, validate=True)
    except (binascii.Error, ValueError) as error:
        actual, fix = repr(request.image[:40]), "encode the bytes of the file"
        raise request_error(422, "image", "base64", actual, fix) from error


def class_names(words: str | list[str], limits: Limits) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms of each class name; raises `RequestError` 422 for too many or empty ones."""
    given = words.split(",") if isinstance(words, str) else words
    if words == "":
        return ()
    groups = tuple(tuple(split_synonyms(word)) for word in given)
    count, longest = sum(map(len, groups)), max(map(len, given), default=0)
    if count > limits.words:
        raise request_error(422, "words", f"at most {limits.words}, with synonyms", str(count), "send fewer")
    if longest > MAX_LETTERS:
        raise request_error(422, "words", f"at most {MAX_LETTERS} letters each", str(longest), "send shorter ones")
    return groups


def user_boxes(boxes: list[list[float]] | None, limits: Limits) -> tuple[tuple[float, ...], ...] | None:
    """Return the boxes of a request; raises `RequestError` 422 for lists of other lengths than four."""
    if boxes is None:
        return None
    wrong = next((box for box in boxes if len(box) != 4), None)
    if wrong is not None:
        raise request_error(422, "boxes", "four numbers each: x1 y1 x2 y2", str(wrong)[:100], "correct the box")
    return tuple(tuple(box) for box in boxes)


def detect_job(request: DetectRequest, image: bytes, limits: Limits) -> Job:
    """Return the job of a request."""
    names = class_names(request.words, limits)
    if bool(names) == bool(request.vocabulary):
        raise _one_of("words or vocabulary", both=bool(names))
    return Job(
        "detect",
        image,
        names,
        request.vocabulary,
        user_boxes(request.boxes, limits),
        request.threshold,
        request.topk,
        request.words_per_box,
        request.per_class,
        request.background,
    )


def embed_job(request: EmbedRequest, image: bytes, limits: Limits) -> Job:
    """Return the job of a request."""
    names = class_names(request.words, limits)
    if bool(names) == bool(image):
        raise _one_of("words or image", both=bool(names))
    if request.boxes is not None and not image:
        raise request_error(422, "boxes", "an image with them", "none", "send one, or leave them out")
    return Job("embed", image, names, boxes=user_boxes(request.boxes, limits))


def _one_of(what: str, *, both: bool) -> RequestError:
    return request_error(422, what, "one of them", "both" if both else "neither", "see /docs for the fields")
