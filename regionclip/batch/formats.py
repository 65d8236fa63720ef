"""Detections of a run in the formats of other tools: YOLO, Pascal VOC, Label Studio and CSV; COCO is always written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import yaml

from regionclip.batch.file_names import forget_files, note_files, short, unique_names
from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json

Results = Sequence[dict[str, Any]]
"""Of each image or video frame, as `batch.results.as_result` returns them."""

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot have."""

YOLO_FOLDER, VOC_FOLDER, LABEL_STUDIO_FILE, CSV_FILE = "yolo", "voc", "label_studio.json", "detections.csv"


def write_yolo(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `yolo/labels/NAME.txt` for each image, and `yolo/data.yaml` with the class names.

    A line is class, center and size as fractions of the image. Scores are left out: readers take longer lines for
    polygons.
    """
    folder, names = output / YOLO_FOLDER, label_names(results, ".txt")
    forget_files(folder)
    for result, name in zip(results, names, strict=True):
        lines = []
        for found in result["detections"]:
            width, height = result["width"], result["height"]
            x1, y1, x2, y2 = _inside(found["box"], width, height)
            box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{found['class_id']} {' '.join(f'{number:.9g}' for number in box)}\n")
        _write(folder / "labels" / name, "".join(lines))
    note_files(folder, [f"labels/{name}" for name in names])
    content = {"train": "images", "val": "images", "names": dict(enumerate(words))}
    _write(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder


def write_voc(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `voc/NAME.xml` for each image, with whole pixels counted from 1, as in Pascal VOC."""
    folder, names = output / VOC_FOLDER, label_names(results, ".xml")
    forget_files(folder)
    for result, name in zip(results, names, strict=True):
        root = ElementTree.Element("annotation")
        file = PurePosixPath(Path(result["file"]).as_posix())
        for tag, text in (("folder", file.parent.name), ("filename", file.name), ("path", str(file))):
            ElementTree.SubElement(root, tag).text = text
        size = ElementTree.SubElement(root, "size")
        for tag, number in (("width", result["width"]), ("height", result["height"]), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(number)
        for found in result["detections"]:
            _add_object(root, found, result["width"], result["height"])
        for element in root.iter():
            element.text = element.text and _NOT_IN_XML.sub("\ufffd", element.text)
        ElementTree.indent(root)
        _write(folder / name, ElementTree.tostring(root, encoding="unicode"))
    note_files(folder, names)
    return folder


def _add_object(root: ElementTree.Element, found: dict[str, Any], width: int, height: int) -> None:
    entry = ElementTree.SubElement(root, "object")
    for tag, text in (("name", found["word"]), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        ElementTree.SubElement(entry, tag).text = text
    ElementTree.SubElement(entry, "score").text = f"{found['score']:.6g}"
    if "track_id" in found:
        ElementTree.SubElement(entry, "track_id").text = str(found["track_id"])
    x1, y1, x2, y2 = _inside(found["box"], width, height)
    first = min(round(x1 + 1), width), min(round(y1 + 1), height)
    # The last pixel of the box is its far edge, counted from 1.
    corners = (*first, max(round(x2), first[0]), max(round(y2), first[1]))
    box = ElementTree.SubElement(entry, "bndbox")
    for tag, number in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        ElementTree.SubElement(box, tag).text = str(number)


def write_label_studio(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `label_studio.json`, tasks with predictions for an import into Label Studio.

    Boxes are percent of the image. The labeling interface has an Image named `image` and RectangleLabels named `label`.
    """
    tasks = []
    for result in results:
        size = {"original_width": result["width"], "original_height": result["height"], "image_rotation": 0}
        regions = []
        for number, found in enumerate(result["detections"]):
            x1, y1, x2, y2 = found["box"]
            horizontal, vertical = 100 / result["width"], 100 / result["height"]
            value = {"x": x1 * horizontal, "y": y1 * vertical, "rotation": 0, "rectanglelabels": [found["word"]]}
            value |= {"width": (x2 - x1) * horizontal, "height": (y2 - y1) * vertical}
            about = {"id": f"r{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image"}
            regions.append({**about, **size, "value": value, "score": found["score"]})
        scores = [found["score"] for found in result["detections"]]
        prediction = {"model_version": "regionclip", "score": max(scores, default=0.0), "result": regions}
        data = {"image": result["file"], **({"frame": result["frame"]} if "frame" in result else {})}
        tasks.append({"data": data, "predictions": [prediction]})
    write_json(output / LABEL_STUDIO_FILE, tasks)
    return output / LABEL_STUDIO_FILE


def write_csv(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `detections.csv`: a row for each detection, boxes as x1 y1 x2 y2 in pixels of the image.

    `track_id` is empty for detections without a track.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "frame", "word", "class_id", "score", "x1", "y1", "x2", "y2", "track_id"])
    for result in results:
        for found in result["detections"]:
            about = [result["file"], result.get("frame", ""), found["word"], found["class_id"]]
            table.writerow([*about, repr(found["score"]), *map(repr, found["box"]), found.get("track_id", "")])
    _write(output / CSV_FILE, text.getvalue())
    return output / CSV_FILE


FORMATS: dict[str, Callable[[Results, Sequence[str], Path], Path]] = {
    "yolo": write_yolo,
    "voc": write_voc,
    "label-studio": write_label_studio,
    "csv": write_csv,
}
"""Values of `--format`, besides `coco`; each returns what it wrote."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats of a list with commas, without COCO; raises `UserError` for an unknown one."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name != "coco" and name not in FORMATS]:
        expected = f"coco, {', '.join(FORMATS)}, with commas"
        raise user_error("--format", expected, ", ".join(unknown), "name one of them")
    return tuple(dict.fromkeys(name for name in names if name != "coco"))


def label_names(results: Results, extension: str = "") -> list[str]:
    """Return the unique name of the label file of each result, relative to its folder.

    That is the name of the image, with sub-folders, without its extension if no other image has the same, and with the
    number of the frame for videos.
    """
    names = [(result["image_id"].rpartition("#")[0], _frame(result)) for result in results]
    return [short(name, extension) for name in unique_names(names)]


def _frame(result: dict[str, Any]) -> str:
    return f".{result['frame']}" if "frame" in result else ""


def _inside(box: Sequence[float], width: int, height: int) -> list[float]:
    """Return a box clipped to the image."""
    return [min(max(edge, 0.0), float(limit)) for edge, limit in zip(box, (width, height) * 2, strict=True)]


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
