"""Captions of image files: COCO's format, and tables."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from regionclip.data.datasets.annotation_file import by_id, id_key, read_annotation_file, report_left_out, unique_images
from regionclip.data.datasets.coco_json import image_file
from regionclip.data.image_text.pairs import CAPTION_KEYS, Pair, PathPairs
from regionclip.errors import user_error

FILE_KEYS = ("file_name", "filename", "filepath", "image", "path")
"""Table columns that hold file names."""


def read_coco_captions(path: Path) -> PathPairs:
    """Return the pairs of a COCO captions file: each image with all its captions.

    Images are in `../../SPLIT` of `annotations/captions_SPLIT.json`, or next to the file.
    """
    fix = "name a captions_*.json file"
    content = read_annotation_file(path, what="COCO's captions format", fix=fix, key="annotations")
    folder = path.parent.parent / path.stem.removeprefix("captions_")
    folder = folder if folder.is_dir() else path.parent
    captions: dict[str | None, list[str]] = {}
    left_out: Counter[str] = Counter()
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and isinstance(annotation.get("caption"), str):
            captions.setdefault(id_key(annotation.get("image_id")), []).append(annotation["caption"])
        else:
            left_out["annotations without a caption"] += 1
    if not captions:
        raise user_error(str(path), "annotations with captions", "none", fix)
    pairs = []
    for image in by_id(unique_images(content["images"], str(path))):
        own = captions.pop(id_key(image["id"]), None)
        if own and "file_name" not in image:
            left_out["images without a file_name"] += 1
        elif own:
            place = Path(image_file(image, str(folder), str(path)))
            pairs.append(Pair(str(image["id"]), place, json.dumps({"captions": own})))
    left_out["captions of unknown images"] += sum(map(len, captions.values()))
    report_left_out(str(path), +left_out)
    return PathPairs(pairs)


def read_table(path: Path) -> PathPairs:
    """Return the pairs of a CSV, TSV or Parquet table of file names, relative to the table, and captions."""
    rows = list(_parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path))
    columns = list(rows[0]) if rows else []
    name = next((column for column in FILE_KEYS if column in columns), None)
    words = next((column for column in CAPTION_KEYS if column in columns), None)
    if name is None or words is None:
        expected = f"a column of files ({', '.join(FILE_KEYS)}) and one of captions ({', '.join(CAPTION_KEYS)})"
        raise user_error(str(path), expected, ", ".join(map(str, columns)) or "no rows", "rename the columns")
    return PathPairs(
        Pair(f"{i}/{row[name]}", path.parent / str(row[name]), str(row[words] or "")) for i, row in enumerate(rows)
    )


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    # Quotation marks are part of the text in TSV files.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        yield from csv.DictReader(file, **dialect)


def import_parquet(what: str) -> Any:
    """Return the module `pyarrow.parquet`; raises a `UserError` about the table `what` if it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        fix = 'pip install "regionclip[parquet]", or write the table in another format'
        raise user_error(what, "pyarrow, which reads Parquet", "it is not installed", fix) from error
    return parquet


def _parquet_rows(path: Path) -> Iterable[dict[str, Any]]:
    parquet = import_parquet(str(path))
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:  # as which pyarrow's errors can be caught
        raise user_error(str(path), "a Parquet file", str(error)[:200], "write or copy it again") from error
