"""Datasets in Pascal VOC's format: an XML file for each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionclip.data.datasets.annotation_file import side
from regionclip.data.image_listing import LeftOut, files_in_folder
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.data.own_datasets.dataset import ALL, SPLIT_NAMES, TRAIN, OwnDataset
from regionclip.data.own_datasets.readers import as_record, box_xywh, size_of, supervision_formats
from regionclip.errors import user_error
from regionclip.files import read_lines
from regionclip.records import Record

VOC = "Pascal VOC"

_ENDINGS = [spelled for ending in sorted(IMAGE_ENDINGS) for spelled in (ending, ending.upper())]


@dataclass(frozen=True)
class _Annotated:
    """Content of an XML file."""

    file: Path
    objects: list[tuple[str, list[float]]]
    """Class name and box x y width height in pixels of each object."""
    image_name: str
    """As the file states it, without folders."""
    size: tuple[int | None, int | None]
    """(height, width) as the file states them."""


def is_voc(folder: Path) -> bool:
    """Return whether a folder, its `Annotations`, or its folders of splits have XML files."""
    return bool(_files_of_splits(folder))


def read_voc(folder: Path, image_root: Path | None = None) -> OwnDataset:
    """Read a dataset of XML files.

    The folder has `Annotations`, `JPEGImages` and `ImageSets/Main`; or XML files next to images; or such folders named
    `train` and `valid`. An XML file is read by supervision: pixels are counted from 1. Class names are sorted.

    Args:
        folder: the dataset.
        image_root: folder of the images; None takes `JPEGImages`, `images`, or the folder of the XML files.

    Raises:
        UserError: an unreadable file, or an image that is nowhere; the message names the file.
    """
    read = {split: [_read(file) for file in files] for split, files in _files_of_splits(folder).items()}
    names = tuple(sorted({name for split in read.values() for entry in split for name, _ in entry.objects}))
    index = {name: number for number, name in enumerate(names)}
    records, number = {}, 0
    for split, entries in read.items():
        records[split] = [_record(entry, number + i, index, image_root) for i, entry in enumerate(entries, start=1)]
        number += len(entries)
    return OwnDataset(folder, VOC, names, records)


def _files_of_splits(folder: Path) -> dict[str, list[Path]]:
    annotations = folder / "Annotations"
    if annotations.is_dir():
        # Lists of one class, such as cat_train.txt, have another stem.
        lists = {SPLIT_NAMES.get(file.stem): file for file in (folder / "ImageSets" / "Main").glob("*.txt")}
        both = folder / "ImageSets" / "Main" / "trainval.txt"
        if TRAIN not in lists and both.is_file():
            lists[TRAIN] = both
        splits = {
            split: [_listed(annotations, line) for line in read_lines(file, "images")]
            for split, file in lists.items()
            if split
        }
        return splits or _if_any({ALL: _xml_files(annotations)})
    inner = {SPLIT_NAMES.get(place.name.lower()): place for place in folder.iterdir() if place.is_dir()}
    splits = _if_any({split: _xml_files(place) for split, place in sorted(inner.items(), key=str) if split})
    return splits or _if_any({ALL: _xml_files(folder)})


def _listed(annotations: Path, line: str) -> Path:
    """Return the XML file of a line: the name of an image, which lists of one class continue with -1, 0 or 1."""
    whole = annotations / f"{line}.xml"
    name, _, last = line.rpartition(" ")
    return annotations / f"{name.strip()}.xml" if last in ("-1", "0", "1") and not whole.is_file() else whole


def _xml_files(folder: Path) -> list[Path]:
    return files_in_folder(folder, {".xml"}, LeftOut())


def _if_any(splits: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {split: files for split, files in splits.items() if files}


def _parse(file: Path) -> Any:
    from defusedxml.common import DefusedXmlException  # supervision requires defusedxml
    from defusedxml.ElementTree import parse

    try:
        return parse(file).getroot()
    except (OSError, ValueError, SyntaxError, DefusedXmlException) as error:
        fix = "export the annotations again, or remove the file"
        raise user_error(str(file), "Pascal VOC's XML", " ".join(str(error).split()), fix) from error


def _read(file: Path) -> _Annotated:
    root, formats = _parse(file), supervision_formats("pascal_voc")
    found = []
    for number, element in enumerate(root.iter("object"), start=1):
        for polygon in element.findall("polygon"):
            element.remove(polygon)  # only boxes are read, and tools write polygons in several ways
        alone = type(element)("annotation")
        alone.append(element)
        try:
            detections, names = formats.detections_from_xml_obj(alone, [], (1, 1))
        except ValueError as error:
            where, fix = f"{file}: object {number}", "correct the file"
            raise user_error(where, "a name and a bndbox of four numbers", str(error), fix) from error
        found.append((str(names[0]).strip(), box_xywh(detections.xyxy[0])))
    stated = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return _Annotated(file, found, stated, (side(root.findtext("size/height")), side(root.findtext("size/width"))))


def _record(entry: _Annotated, number: int, index: Mapping[str, int], image_root: Path | None) -> Record:
    image = _image_of(entry, image_root)
    # As for COCO's files, training and evaluation compare the stated size with that of the image.
    size = entry.size if None not in entry.size else size_of(image)
    return as_record(image, number, size, [(index[name], box) for name, box in entry.objects])


def _image_of(entry: _Annotated, image_root: Path | None) -> Path:
    """Return the image of an XML file: of its own name, else of the name that it states."""
    dataset, file = entry.file.parent.parent, entry.file
    folders = [image_root] if image_root else [dataset / "JPEGImages", dataset / "images", file.parent]
    for folder in folders:
        for name in (*(f"{file.stem}{ending}" for ending in _ENDINGS), entry.image_name):
            if name and (folder / name).is_file():
                return folder / name
    expected = f"its image in {' or '.join(map(str, dict.fromkeys(folders)))}"
    raise user_error(str(file), expected, "no such file", "name the folder of the images with --images")
