"""Conversion of detections to plain numbers for journal and COCO JSON, and back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionclip.data.image_sources import Frame, ImageFile
from regionclip.detections import NO_TRACK, Detections

_ABOUT_IMAGES = ("width", "height", "frame", "seconds", "date_captured")
"""Keys of a result that COCO's JSON has too."""


def as_coco(results: Sequence[dict[str, Any]], words: Sequence[str]) -> dict[str, Any]:
    """Return results as COCO's JSON: `images`, `categories`, and `annotations` with a `score`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counter = itertools.count(1)
    for image_id, result in enumerate(results, start=1):
        known = {key: result[key] for key in _ABOUT_IMAGES if key in result}
        images.append({"id": image_id, "file_name": result["file"]} | known)
        for found in result["detections"]:
            left, top, right, bottom = found["box"]
            annotation = {
                "id": next(counter),
                "image_id": image_id,
                "category_id": found["class_id"] + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "score": found["score"],
            }
            annotations.append(annotation | {key: found[key] for key in ("track_id",) if key in found})
    categories = [{"id": i, "name": word} for i, word in enumerate(words, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def as_result(image_id: str, file: ImageFile, frame: Frame, found: Detections) -> dict[str, Any]:
    """Return the detections in an image or frame as plain numbers for JSON."""
    result: dict[str, Any] = {"image_id": image_id, "file": file.place}
    if file.is_video:
        result |= {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    if frame.captured:
        result["date_captured"] = frame.captured
    if frame.notes:
        result["notes"] = list(frame.notes)
    if found.warnings:
        result["warnings"] = list(found.warnings)
    result |= {"width": found.image_size[1], "height": found.image_size[0], "detections": []}
    for row, name in enumerate(found.names):
        entry: dict[str, Any] = {
            "word": name,
            "class_id": int(found.class_ids[row]),
            "score": float(found.scores[row]),
            "box": found.boxes[row].tolist(),
        }
        if found.top_class_ids.shape[1]:
            entry["top_words"] = found.top_words(row)
        result["detections"].append(entry)
    return result


def as_detections(result: dict[str, Any], names: tuple[str, ...], frame: Frame) -> Detections:
    """Return a result as `Detections`, with the pixels of its frame; `names` are the class names."""
    rows = result["detections"]
    place = dict(zip(names, range(len(names)), strict=True))
    top: list[list[tuple[str, float]]] = [entry.get("top_words", []) for entry in rows]
    shape = (len(rows), len(top[0]) if top else 0)
    return Detections(
        boxes=np.array([entry["box"] for entry in rows], np.float32).reshape(-1, 4),
        scores=np.array([entry["score"] for entry in rows], np.float32),
        class_ids=np.array([entry["class_id"] for entry in rows], np.int64),
        vocabulary=names,
        image_size=(result["height"], result["width"]),
        top_class_ids=np.array([[place[word] for word, _ in pairs] for pairs in top], np.int64).reshape(shape),
        top_scores=np.array([[score for _, score in pairs] for pairs in top], np.float32).reshape(shape),
        track_ids=_track_ids(rows),
        image=frame.pixels,
        warnings=tuple(result.get("warnings", ())),
    )


def _track_ids(rows: Sequence[dict[str, Any]]) -> NDArray[np.int64] | None:
    if not any("track_id" in entry for entry in rows):
        return None
    return np.array([entry.get("track_id", NO_TRACK) for entry in rows], np.int64)
