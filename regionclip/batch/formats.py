"""Detections of a run in the formats of other tools: YOLO, Pascal VOC, Label Studio and CSV; COCO is always written."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import yaml

from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json

Results = Sequence[dict[str, Any]]
"""Of each image or video frame, as `batch.results.as_result` returns them."""

YOLO_FOLDER, VOC_FOLDER, LABEL_STUDIO_FILE, CSV_FILE = "yolo", "voc", "label_studio.json", "detections.csv"


def write_yolo(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `yolo/labels/NAME.txt` for each image, and `yolo/data.yaml` with the class names.

    A line is class, center and size as fractions of the image. Scores are left out: readers take longer lines for
    polygons.
    """
    folder = output / YOLO_FOLDER
    for result, name in zip(results, label_names(results), strict=True):
        lines = []
        for found in result["detections"]:
            x1, y1, x2, y2 = found["box"]
            width, height = result["width"], result["height"]
            box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f"{found['class_id']} {' '.join(f'{number:.9g}' for number in box)}\n")
        _write(folder / "labels" / f"{name}.txt", "".join(lines))
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(words))}
    _write(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder


def write_voc(results: Results, words: Sequence[str], output: Path) -> Path:
    """Write `voc/NAME.xml` for each image, with whole pixels counted from 1, as in Pascal VOC."""
    folder = output / VOC_FOLDER
    for result, name in zip(results, label_names(results), strict=True):
        root = ElementTree.Element("annotation")
        file = PurePosixPath(Path(result["file"]).as_posix())
        for tag, text in (("folder", file.parent.name), ("filename", file.name), ("path", str(file))):
            ElementTree.SubElement(root, tag).text = text
        size = ElementTree.SubElement(root, "size")
        for tag, number in (("width", result["width"]), ("height", result["height"]), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(number)
        for found in result["detections"]:
            _add_object(root, found)
        ElementTree.indent(root)
        _write(folder / f"{name}.xml", ElementTree.tostring(root, encoding="unicode"))
    return folder


def _add_object(root: ElementTree.Element, found: dict[str, Any]) -> None:
    entry = ElementTree.SubElement(root, "object")
    for tag, text in (("name", found["word"]), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        ElementTree.SubElement(entry, tag).text = text
    ElementTree.SubElement(entry, "score").text = f"{found['score']:.6g}"
    x1, y1, x2, y2 = found["box"]
    first = round(x1 + 1), round(y1 + 1)
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
    """Write `detections.csv`: a row for each detection, boxes as x1 y1 x2 y2 in pixels of the image."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "frame", "word", "class_id", "score", "x1", "y1", "x2", "y2"])
    for result in results:
        for found in result["detections"]:
            about = [result["file"], result.get("frame", ""), found["word"], found["class_id"]]
            table.writerow([*about, repr(found["score"]), *map(repr, found["box"])])
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


def label_names(results: Results) -> list[str]:
    """Return the unique name of the label file of each result, without extension, relative to its folder.

    That is the name of the image without its extension, with sub-folders; the whole name if another image has the same,
    and with the number of the frame for videos.
    """
    names = []
    for result in results:
        name, _, frame = result["image_id"].rpartition("#")
        names.append((PurePosixPath(name), f".{frame}" if "frame" in result else ""))
    stems = [f"{name.with_suffix('')}{frame}" for name, frame in names]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else f"{name}{frame}" for stem, (name, frame) in zip(stems, names, strict=True)]


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
