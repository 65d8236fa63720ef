"""Reading and validation of result files in COCO's format."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, cast

from regionclip.data.datasets.annotation_file import id_key, read_json
from regionclip.errors import user_error
from regionclip.records import Result

"""One detection in COCO's results format."""


def read_results(path: str, what: str) -> dict[str, list[Result]]:
    """Return the detections of a result file by `id_key` of their image, in file order.

    Args:
        path: JSON list in COCO's results format.
        what: the option that named the file, for messages.

    Returns:
        Detections with `bbox` [x, y, width, height] and `score` as floats, and `category_id` as `id_key`.

    Raises:
        UserError: another format; the message names the entry.
    """
    fix = "use *_instances_results.json"
    content = read_json(path, what="a list in COCO's results format", fix=f"{what}: {fix}")
    if not isinstance(content, list):
        raise user_error(f"{what} {path}", "a list in COCO's results format", f"a {type(content).__name__}", fix)
    by_image: dict[str, list[Result]] = defaultdict(list)
    for number, entry in enumerate(content):
        result = _result(entry, f"{what} {path}, entry {number}")
        by_image[str(id_key(result["image_id"]))].append(result)
    return dict(by_image)


def _result(entry: Any, what: str) -> Result:
    fix = "correct or remove it"
    if not isinstance(entry, dict):
        raise user_error(what, "a detection", repr(entry)[:80], fix)
    for key in ("image_id", "category_id"):
        if id_key(entry.get(key)) is None:
            raise user_error(what, f"an id as {key}", repr(entry.get(key)), fix)
    box, score = _finite(entry.get("bbox")), _finite([entry.get("score")])
    if box is None or len(box) != 4:
        raise user_error(what, "four numbers as bbox", repr(entry.get("bbox"))[:80], fix)
    if score is None:
        raise user_error(what, "a number as score", repr(entry.get("score"))[:80], fix)
    return cast(Result, {**entry, "bbox": box, "score": score[0], "category_id": id_key(entry["category_id"])})


def _finite(values: Any) -> list[float] | None:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None
