"""Image-text pairs from tar shards, COCO captions, tables and upstream's TSV files, all by number."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionclip.data.coco_json import read_annotation_file
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.errors import user_error
from regionclip.files import atomic_write, resolve_path, write_json

TEXT_ENDINGS = (".json", ".txt")
"""Members of a tar shard that hold a caption, the preferred first."""

INDEX_ENDING = ".index.json"

CAPTION_KEYS = ("caption", "captions", "text", "tags")
"""Keys of JSON texts, and columns of tables, that hold words."""

FILE_KEYS = ("file_name", "filename", "filepath", "image", "path")


@dataclass(frozen=True)
class Pair:
    """One image with its text, not decoded."""

    key: str
    """Unique name of the sample within its source."""
    image: bytes | Path
    text: str
    """A caption, or a JSON object with `captions` or `tags`."""


class PairSource(ABC):
    """Pairs by number, in groups that lie together on disk."""

    group_sizes: list[int]
    """Pairs in each group: a shard, or all."""

    @abstractmethod
    def __getitem__(self, number: int) -> Pair:
        """Read a pair; raises `OSError` or `ValueError` where it is damaged."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(self.group_sizes)


class PathPairs(PairSource):
    """Pairs whose images are files."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Make a source of pairs in memory."""
        self.pairs = pairs
        self.group_sizes = [len(pairs)]

    def __getitem__(self, number: int) -> Pair:
        """Return a pair."""
        return self.pairs[number]


class FilePairs(PairSource):
    """Pairs that lie in large files, found by an index."""

    def __init__(self, files: Sequence[Path], index: Callable[[Path], list[Any]]) -> None:
        """Make a source; `index` lists where the pairs of a file lie."""
        self.files = list(files)
        self.entries = [index(path) for path in self.files]
        self.group_sizes = [len(entries) for entries in self.entries]
        self._ends = np.cumsum(self.group_sizes)

    def locate(self, number: int) -> tuple[Path, Any]:
        """Return the file and the index entry of a pair."""
        group = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        return self.files[group], self.entries[group][number - first]


class ShardPairs(FilePairs):
    """WebDataset shards: tar files with `key.jpg` and `key.txt` or `key.json` side by side.

    An index of each shard, made on the first visit, is kept beside it; a shard that ends early gives
    the pairs before the damage.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Make a source of tar files."""
        super().__init__(files, index_shard)

    def __getitem__(self, number: int) -> Pair:
        """Read a pair."""
        path, (key, image, text) = self.locate(number)
        with path.open("rb") as file:
            return Pair(f"{path.name}/{key}", _read(file, *image), _read(file, *text).decode("utf-8", "replace"))


def index_shard(path: Path) -> list[Any]:
    """Return `[key, [offset, size] of the image, [offset, size] of the text]` of each pair of a tar file."""
    cache, state = Path(f"{path}{INDEX_ENDING}"), [path.stat().st_size, path.stat().st_mtime_ns]
    if cache.is_file():
        content = json.loads(cache.read_text())
        if content["state"] == state:
            return content["pairs"]
    members: dict[str, dict[str, tuple[int, int]]] = {}
    for name, place in _members(path):
        stem, ending = name[: name.rfind("/") + 1] + name.rsplit("/", 1)[-1].split(".", 1)[0], Path(name).suffix.lower()
        kind = "image" if ending in IMAGE_ENDINGS else ending
        members.setdefault(stem, {})[kind] = place
    pairs = []
    for key, parts in members.items():
        text = next((parts[ending] for ending in TEXT_ENDINGS if ending in parts), None)
        if "image" in parts and text:
            pairs.append([key, parts["image"], text])
    with contextlib.suppress(OSError):  # in a read-only folder it is made again each time
        write_json(cache, {"state": state, "pairs": pairs})
    return pairs


def _members(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and member.offset_data + member.size <= size:
                    yield member.name, (member.offset_data, member.size)
    except tarfile.ReadError:
        return  # cut short: what came before is whole


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


class TSVPairs(FilePairs):
    """Upstream's TSV files: `images*.tsv` with key and base64, `text*.tsv` with key and text, line by line."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Make a source of image files; their text files lie beside them."""
        self.texts = {path: text_file_of(path) for path in files}
        super().__init__(files, lambda path: _tsv_lines(path, self.texts[path]))

    def __getitem__(self, number: int) -> Pair:
        """Read a pair.

        Raises:
            ValueError: the two lines do not belong together, or are no TSV.
        """
        path, (image_at, text_at) = self.locate(number)
        key, image = _line(path, image_at)
        text_key, text = _line(self.texts[path], text_at)
        if key != text_key:
            raise ValueError(f"line of {key} in {path.name}, of {text_key} in {self.texts[path].name}")
        return Pair(f"{path.name}/{key}", _decode_base64(image), text)


def text_file_of(path: Path) -> Path:
    """Return the text file that upstream reads beside an image file."""
    for old, new in (("images", "text"), ("image", "text"), ("img", "caption")):
        if old in path.name:
            return path.with_name(path.name.replace(old, new))
    return path


def line_index(path: Path) -> NDArray[np.int64]:
    """Return the byte offset of each line: from `<stem>.lineidx`, which is written where it is missing."""
    index = path.with_suffix(".lineidx")
    if index.is_file():
        return np.array(index.read_text().split(), dtype=np.int64)
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            offsets.append(position)
            position += len(line)
    with atomic_write(index) as file:
        file.write("".join(f"{offset}\n" for offset in offsets).encode())
    return np.array(offsets, dtype=np.int64)


def _tsv_lines(images: Path, texts: Path) -> list[Any]:
    if not texts.is_file():
        raise user_error(str(images), f"its captions in {texts.name}", "no such file", "put it beside the images")
    offsets = line_index(images), line_index(texts)
    if len(offsets[0]) != len(offsets[1]):
        actual = f"{len(offsets[0])} images and {len(offsets[1])} texts"
        raise user_error(str(images), "as many lines as its captions", actual, "write both files again")
    selected = images.with_suffix(".linelist")
    rows = range(len(offsets[0]))
    numbers = sorted(int(row) for row in selected.read_text().split()) if selected.is_file() else rows
    return [(int(offsets[0][row]), int(offsets[1][row])) for row in numbers]


def _line(path: Path, offset: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(offset)
        parts = file.readline().decode("utf-8", "replace").rstrip("\r\n").split("\t")
    if len(parts) != 2:
        raise ValueError(f"{len(parts)} columns instead of 2 in {path.name}")
    return parts


def _decode_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def read_coco_captions(path: Path) -> PathPairs:
    """Return the pairs of a COCO captions file: an image with all its captions.

    Images lie in `../../SPLIT` of `annotations/captions_SPLIT.json`, or beside the file.
    """
    fix = "name a captions_*.json file"
    content = read_annotation_file(path, what="COCO's captions format", fix=fix, key="annotations")
    folder = path.parent.parent / path.stem.removeprefix("captions_")
    folder = folder if folder.is_dir() else path.parent
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    images = sorted(content["images"], key=lambda image: image["id"])
    return PathPairs(
        [
            Pair(str(image["id"]), folder / image["file_name"], json.dumps({"captions": captions[image["id"]]}))
            for image in images
            if image["id"] in captions
        ]
    )


def read_table(path: Path) -> PathPairs:
    """Return the pairs of a CSV, TSV or Parquet table of file names, relative to the table, and captions."""
    rows = list(_parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path))
    columns = list(rows[0]) if rows else []
    name = next((column for column in FILE_KEYS if column in columns), None)
    words = next((column for column in CAPTION_KEYS if column in columns), None)
    if name is None or words is None:
        expected = f"a column of files ({', '.join(FILE_KEYS)}) and one of captions ({', '.join(CAPTION_KEYS)})"
        raise user_error(str(path), expected, ", ".join(columns) or "no rows", "rename the columns")
    return PathPairs(
        [Pair(f"{i}/{row[name]}", path.parent / str(row[name]), str(row[words] or "")) for i, row in enumerate(rows)]
    )


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")


def _parquet_rows(path: Path) -> Iterable[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        fix = "pip install pyarrow, or write the table as CSV"
        raise user_error(str(path), "pyarrow, which reads Parquet", "it is not installed", fix) from error
    return pyarrow.parquet.read_table(path).to_pylist()


def open_pairs(path: str, factory: str) -> list[PairSource]:
    """Return the sources that an entry of PATH_TRAIN names; `a+b` names several.

    Args:
        path: file, or folder of files.
        factory: entry of FACTORY_TRAIN, a name in `FACTORIES`.

    Raises:
        UserError: unknown factory, nothing there, or a file that is not what it should be.
    """
    if factory not in FACTORIES:
        raise user_error("DATASETS.FACTORY_TRAIN", " or ".join(FACTORIES), repr(factory), "choose one of them")
    sources = []
    for name in path.split("+"):
        place = resolve_path(name)
        if not place.exists():
            fix = "correct the path (docs/pretraining.md)"
            raise user_error("DATASETS.PATH_TRAIN", "a file or folder of image-text pairs", name, fix)
        sources += FACTORIES[factory](place)
    if not sum(map(len, sources)):
        fix = "correct the path, or choose the FACTORY_TRAIN of its format (docs/pretraining.md)"
        raise user_error(f"DATASETS.PATH_TRAIN {path}", "image-text pairs", "none", fix)
    return sources


def _files(place: Path, fits: Callable[[Path], bool]) -> list[Path]:
    return [place] if place.is_file() else sorted(path for path in place.iterdir() if fits(path))


def _is_image_tsv(path: Path) -> bool:
    return path.suffix == ".tsv" and ("image" in path.name or "img" in path.name)


FACTORIES: dict[str, Callable[[Path], list[PairSource]]] = {
    "CLIPImgTxtPairTSVDataset": lambda place: [TSVPairs(_files(place, _is_image_tsv))],
    "ImageTextShards": lambda place: [ShardPairs(_files(place, lambda path: path.suffix == ".tar"))],
    "COCOCaptions": lambda place: [read_coco_captions(path) for path in _files(place, _is_captions)],
    "CaptionTable": lambda place: [read_table(path) for path in _files(place, _is_table)],
}
"""Readers by the name in DATASETS.FACTORY_TRAIN; the first is upstream's."""


def _is_captions(path: Path) -> bool:
    return path.name.startswith("captions_") and path.suffix == ".json"


def _is_table(path: Path) -> bool:
    return path.suffix in (".csv", ".tsv", ".parquet")
