"""Annotation files in COCO's and LVIS's formats: any encoding, with all entries and ids checked."""

from __future__ import annotations

import functools
import json
import logging
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detectron2.utils import comm

from regionclip.errors import user_error

logger = logging.getLogger(__name__)

Entry = dict[str, Any]

AnyEntry = TypeVar("AnyEntry", bound=Mapping[str, Any])
"""One image, category or annotation of a file."""

OWN_IDS = "give each an id of its own"


def id_key(value: Any) -> str | None:
    """Return an id as text that is the same for 7, 7.0 and "7"; None if it is no valid id."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else None


def id_order(key: str) -> tuple[int, int, str]:
    """Return the sort key of an `id_key`: numbers ascend, before text."""
    return (0, int(key), "") if re.fullmatch(r"-?[0-9]{1,4000}", key) else (1, 0, key)


def by_id(entries: Iterable[AnyEntry], name: str = "id") -> list[AnyEntry]:
    """Return entries by ascending id; each must have one under `name`."""
    return sorted(entries, key=lambda entry: id_order(id_key(entry.get(name)) or ""))


def side(value: Any) -> int | None:
    """Return a width or height in pixels, also from text; None if invalid."""
    try:
        number = float(value) if isinstance(value, str | numbers.Real) else math.nan
    except (ValueError, OverflowError):
        return None
    return int(number) if number > 0 and number.is_integer() else None


def read_json(path: str | Path, *, what: str, fix: str) -> Any:
    """Return the content of a JSON file in UTF-8 (with or without a byte order mark), UTF-16 or UTF-32.

    Args:
        path: file to read.
        what: the expected content, for messages.
        fix: what the user can do about an invalid file.

    Raises:
        UserError: missing file, or invalid JSON.
    """
    if not Path(path).is_file():
        raise user_error(str(path), what, "no such file", fix)
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        actual = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise user_error(str(path), what, actual, fix) from error


def read_annotation_file(path: str | Path, *, what: str, fix: str, key: str = "categories") -> dict[str, Any]:
    """Return the content of a JSON file with `images` and a second list.

    Args:
        path: file to read.
        what: the format, for error messages.
        fix: what the user can do about an invalid file.
        key: name of the second list.

    Raises:
        UserError: missing file, or another format.
    """
    content = read_json(path, what=what, fix=fix)
    if not isinstance(content, dict):
        raise user_error(str(path), what, f"a JSON {type(content).__name__}", fix)
    for name in ("images", key):
        if not isinstance(content.get(name), list) or not content[name]:
            actual = "an empty list" if content.get(name) == [] else "none"
            raise user_error(str(path), f"{what} with a list `{name}`", actual, fix)
    return content


@dataclass(frozen=True)
class AnnotationFile:
    """Content of an annotation file: ids are unique, and all references resolve."""

    path: str
    images: list[Entry]
    """By ascending id."""
    categories: list[Entry]
    """By ascending id, each with a `name`."""
    annotations: Mapping[str, list[Entry]]
    """Annotations of each image, by `id_key` of its id, in file order."""

    def numbers(self) -> dict[str, int]:
        """Return the index of each category by `id_key` of its id."""
        return {str(id_key(category["id"])): i for i, category in enumerate(self.categories)}


def read_annotations(path: str | Path, *, what: str, fix: str) -> AnnotationFile:
    """Read an annotation file and check its lists.

    Ids may be numbers or text; 7 and "7" are the same. Annotations whose image or category is not in the file are
    dropped and counted. Annotation ids are ignored.

    Args:
        path: file with `images`, `categories` and, unless they are not published, `annotations`.
        what: the format, for error messages.
        fix: what the user can do about an invalid file.

    Raises:
        UserError: missing file, another format, a missing or duplicate id.
    """
    content = read_annotation_file(path, what=what, fix=fix)
    images = unique_images(content["images"], str(path))
    categories = [
        _named(category, path) for category in _unique(content["categories"], "categories", "name", str(path))
    ]
    annotations = content.get("annotations")
    if not isinstance(annotations, list | None):
        raise user_error(f"{path}: annotations", "a list", type(annotations).__name__, fix)
    return AnnotationFile(
        str(path), by_id(images), by_id(categories), _by_image(annotations or (), images, categories, str(path))
    )


def _named(category: Entry, path: str | Path) -> Entry:
    name = category.get("name")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise user_error(f"{path}: category {category['id']}", "a name", repr(name), "write its name between quotes")
    return {**category, "name": str(name)}


def unique_images(images: Any, path: str) -> list[Entry]:
    """Return the images of a file; an image listed twice with the same file name is kept once.

    Raises:
        UserError: an image without an id, or two file names with one id.
    """
    kept: dict[tuple[str | None, str], Entry] = {}
    for image in _with_ids(images, "images", path):
        kept.setdefault((id_key(image["id"]), str(image.get("file_name"))), image)
    if len(kept) < len(images):
        report_left_out(path, {"images listed twice": len(images) - len(kept)})
    return _unique(list(kept.values()), "images", "file_name", path)


def _with_ids(entries: Any, kind: str, path: str) -> list[Entry]:
    if not isinstance(entries, list):
        raise user_error(f"{path}: {kind}", "a list", type(entries).__name__, "write one")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or id_key(entry.get("id")) is None:
            actual = repr(entry.get("id")) if isinstance(entry, dict) else repr(entry)[:50]
            raise user_error(f"{path}: {kind}[{number}]", "an id, a number or text", actual, OWN_IDS)
    return entries


def _unique(entries: Any, kind: str, label: str, path: str) -> list[Entry]:
    """Return entries with unique ids; raises `UserError` that names two with the same id."""
    seen: dict[str | None, Entry] = {}
    for entry in _with_ids(entries, kind, path):
        first = seen.setdefault(id_key(entry["id"]), entry)
        if first is not entry:
            actual = f"{entry['id']} for {first.get(label)} and for {entry.get(label)}"
            raise user_error(f"{path}: {kind}", "an id for each", actual, OWN_IDS)
    return entries


def _by_image(
    annotations: Iterable[Any], images: Sequence[Entry], categories: Sequence[Entry], path: str
) -> dict[str, list[Entry]]:
    by_image: dict[str | None, list[Entry]] = {id_key(image["id"]): [] for image in images}
    known = {id_key(category["id"]) for category in categories}
    left_out: Counter[str] = Counter()
    for annotation in annotations:
        if not isinstance(annotation, dict):
            left_out["annotations that are none"] += 1
        elif id_key(annotation.get("category_id")) not in known:
            left_out["annotations of unknown categories"] += 1
        elif id_key(annotation.get("image_id")) not in by_image:
            left_out["annotations of unknown images"] += 1
        else:
            by_image[id_key(annotation["image_id"])].append(annotation)
    report_left_out(path, left_out)
    return {str(key): own for key, own in by_image.items()}


CLIPPED = "boxes cut at the edge of the image"
"""The only counted kind that is kept."""


def report_left_out(source: str, counts: Mapping[str, int]) -> None:
    """Log one line per kind of dropped entries, once per file.

    Args:
        source: file or dataset.
        counts: number of entries by description of the kind.
    """
    for reason, count in counts.items():
        _report(source, reason, count)


@functools.cache
def _report(source: str, reason: str, count: int) -> None:
    if comm.is_main_process():
        logger.warning("%s: %d %s%s", source, count, reason, "" if reason == CLIPPED else ", left out")
