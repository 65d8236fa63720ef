"""HTML report: thumbnails with boxes, filtered by class name and score, without a server."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regionclip.drawing import color_of
from regionclip.files import atomic_write

DATA_MARK, MOST_MARK = "/*DATA*/", "/*MOST*/"
"""Placeholders for the data, and for the maximum of the score slider."""


def write_report(path: Path, results: Sequence[dict[str, Any]], words: Sequence[str]) -> Path:
    """Write the report; it refers to thumbnails and drawn images next to it.

    Args:
        path: HTML file to write.
        results: of `detect`.
        words: class names of the vocabulary.
    """
    found = sorted({entry["class_id"] for result in results for entry in result["detections"]})
    content = {
        "words": {i: [words[i], color_of(words[i])] for i in found},
        "images": [
            {
                "name": result["image_id"].removesuffix("#0"),
                "thumbnail": _address(result.get("thumbnail", "")),
                "drawn": _address(result.get("drawn", "")),
                "warnings": result.get("warnings", []),
                "size": [result["width"], result["height"]],
                "seconds": result.get("seconds"),
                "found": [_row(entry) for entry in result["detections"]],
            }
            for result in results
            if result.get("thumbnail") != ""  # one that is not listed
        ],
    }
    # A class name could contain the end of a script element.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = files("regionclip.batch").joinpath("report.html").read_text(encoding="utf-8")
    # Published scores (MODEL.CLIP.SHOWN_SCORES) can exceed 1; the slider has steps of 0.01.
    scores = [entry["score"] for result in results for entry in result["detections"]]
    most = max(1.0, math.ceil(max(scores, default=0.0) * 100) / 100)
    page = page.replace(MOST_MARK, f"{most:g}").replace(DATA_MARK, data)
    with atomic_write(path) as file:
        file.write(page.encode(errors="backslashreplace"))
    return path


def _address(path: str) -> str:
    """Return the relative address of a file, whose name need not be UTF-8."""
    return quote(os.fsencode(path))


def _row(entry: dict[str, Any]) -> list[Any]:
    """Return class, score, box and track of a detection."""
    box = [round(edge, 1) for edge in entry["box"]]
    return [entry["class_id"], round(entry["score"], 4), box, entry.get("track_id")]
