"""Exports of Label Studio in JSON: tasks with rectangles and polygons in percent of the image."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from regionclip.data.datasets.annotation_file import id_key, report_left_out, side
from regionclip.data.own_datasets.dataset import ALL, OwnDataset
from regionclip.data.own_datasets.readers import BOX_DECIMALS, as_record
from regionclip.errors import user_error

LABEL_STUDIO = "Label Studio"

_KINDS = ("rectanglelabels", "polygonlabels")

_FIX = "export the project as JSON"

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What an upload has before the name of the file."""

Region = dict[str, Any]


def read_label_studio(path: Path, tasks: Sequence[Any], image_root: Path | None = None) -> OwnDataset:
    """Read the tasks of an export, also of the form JSON-MIN. Class names are sorted.

    The annotation that counts is the one marked as ground truth, else the last that was not skipped. Regions that are
    neither rectangles nor polygons are left out and counted, as are tasks that nobody annotated.

    Args:
        path: the JSON file.
        tasks: its content.
        image_root: folder of the images; None takes that of the file.

    Raises:
        UserError: a task without an image, or a region that is no box; the message names the task.
    """
    left_out: Counter[str] = Counter()
    found = [(task, _regions(task, left_out)) for task in _last_of_each(tasks, left_out)]
    boxes = [(task, list(_boxes(task, regions, path, left_out))) for task, regions in found if regions is not None]
    names = tuple(sorted({name for _, own in boxes for name, _ in own}))
    records = []
    given = {id_key(task["id"]) for task, _ in boxes if task.get("id") is not None}
    unused = (number for number in itertools.count(1) if id_key(number) not in given)
    for task, own in boxes:
        image = _image_file(task, image_root or path.parent, path)
        objects = [(names.index(name), box) for name, box in own]
        image_id = next(unused) if task.get("id") is None else task["id"]
        records.append(as_record(image, image_id, _size(task), objects))
    report_left_out(str(path), left_out)
    return OwnDataset(path, LABEL_STUDIO, names, {ALL: records})


def _last_of_each(tasks: Sequence[Any], left_out: Counter[str]) -> list[Any]:
    """Return the tasks, of which JSON-MIN has one entry for each annotator: the last counts."""
    kept: dict[Any, Any] = {}
    for number, task in enumerate(tasks):
        name = task.get("id") if isinstance(task, dict) else None
        kept[("entry", number) if name is None else ("task", str(name))] = task
    if len(kept) < len(tasks):
        left_out["annotations of a task that has several"] += len(tasks) - len(kept)
    return list(kept.values())


def _regions(task: Any, left_out: Counter[str]) -> list[Region] | None:
    """Return the regions of the annotation that counts; None for a task without one."""
    if not isinstance(task, dict):
        left_out["entries that are no tasks"] += 1
        return None
    if "data" not in task:  # JSON-MIN: the regions stand under the name of their control
        return [{"value": region, **region} for region in _with_kind(task.values())]
    entries = _dicts(task.get("annotations"))
    done = [entry for entry in entries if not entry.get("was_cancelled")]
    if not done:
        left_out["tasks without annotation"] += 1
        return None
    chosen = next((entry for entry in done if entry.get("ground_truth")), done[-1])
    return [region for region in _dicts(chosen.get("result")) if isinstance(region.get("value"), dict)]


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _label(value: Any) -> str:
    """Return the class name of a region; empty if there is none."""
    label = value[0] if isinstance(value, list) and value else value
    return label if isinstance(label, str) else ""


def _with_kind(values: Any) -> list[Region]:
    lists = [value for value in values if isinstance(value, list)]
    return [region for value in lists for region in value if isinstance(region, dict)]


def _boxes(
    task: Any, regions: Sequence[Region], path: Path, left_out: Counter[str]
) -> Iterator[tuple[str, list[float]]]:
    """Yield name and box xywh in pixels of each region."""
    for region in regions:
        value = region["value"]
        kind = next((kind for kind in _KINDS if _label(value.get(kind))), None)
        if kind is None:
            left_out["regions that are neither rectangles nor polygons, or have no label"] += 1
            continue
        size = side(region.get("original_width")), side(region.get("original_height"))
        try:
            if None in size:
                raise ValueError("no original_width and original_height")
            corners = _corners(value, kind, size)
        except (KeyError, TypeError, ValueError) as error:
            where, expected = f"{path}: task {task.get('id', '?')}", "regions with x, y, width and height in percent"
            raise user_error(where, expected, f"{type(error).__name__}: {error}", _FIX) from error
        left, right = min(x for x, _ in corners), max(x for x, _ in corners)
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        yield _label(value[kind]), [round(edge, BOX_DECIMALS) for edge in (left, top, right - left, bottom - top)]


def _corners(value: Region, kind: str, size: tuple[Any, Any]) -> list[tuple[float, float]]:
    """Return the corners of a region in pixels; a rectangle turns around its upper left corner."""
    horizontal, vertical = size[0] / 100, size[1] / 100
    if kind == "polygonlabels":
        return [(float(x) * horizontal, float(y) * vertical) for x, y in value["points"]]
    x, y = float(value["x"]) * horizontal, float(value["y"]) * vertical
    width, height = float(value["width"]) * horizontal, float(value["height"]) * vertical
    angle = math.radians(float(value.get("rotation") or 0))
    across, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    return [
        (x + a * width * across[0] + b * height * down[0], y + a * width * across[1] + b * height * down[1])
        for a in (0, 1)
        for b in (0, 1)
    ]


def _size(task: Any) -> tuple[int | None, int | None]:
    """Return (height, width) that the regions of a task state."""
    for region in _regions(task, Counter()) or ():
        height, width = side(region.get("original_height")), side(region.get("original_width"))
        if height and width:
            return height, width
    return None, None


def _image_file(task: Any, root: Path, path: Path) -> Path:
    """Return the file of a task's image: where it says, or by its name in `root`."""
    data = task.get("data", task)
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    image = data.get("image") if isinstance(data, dict) else None
    addresses = [image] if image and isinstance(image, str) else texts
    where = f"{path}: task {task.get('id', '?')}"
    if not any(addresses):
        raise user_error(where, "an image", "none", _FIX)
    found = next((file for address in addresses if (file := _file_of(address, root)) is not None), None)
    if found is None:
        fix = "name the folder of the images with --images"
        raise user_error(where, f"its image {' or '.join(addresses)[:80]} in {root}", "no such file", fix)
    return found


def _file_of(address: str, root: Path) -> Path | None:
    """Return the file that an address of an export names: where it says, or by its name in a folder; None without."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    place = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).replace("\\", "/")
    name = PurePosixPath(place).name if parts.scheme != "data" else ""
    original = _UPLOADED.sub("", name)
    places = [
        root / place.lstrip("/"),
        *(folder / own for own in (name, original) for folder in (root, root / "images")),
    ]
    places = [Path(place), *places] if Path(place).is_absolute() else places
    return next((file for file in places if name and os.path.isfile(file)), None)  # noqa: PTH113 - Path.is_file raises for impossible names
