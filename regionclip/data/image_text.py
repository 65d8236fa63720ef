"""Image-text pairs from tar shards, COCO captions, tables and upstream's TSV files, all by number."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import logging
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from numpy.typing import NDArray

from regionclip.data.coco_json import read_annotation_file
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.errors import user_error
from regionclip.files import atomic_write, resolve_path, write_json

logger = logging.getLogger(__name__)

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

    def text(self, number: int) -> str:
        """Read the text of a pair alone."""
        return self[number].text

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(self.group_sizes)


class PathPairs(PairSource):
    """Pairs whose images are files."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        """Make a source of pairs, kept as bytes."""
        entries = [(pair.key, str(pair.image), pair.text) for pair in pairs]
        self.entries = DatasetFromList(entries, copy=False) if entries else entries
        self.group_sizes = [len(entries)]

    def __getitem__(self, number: int) -> Pair:
        """Return a pair."""
        key, path, text = self.entries[number]
        return Pair(key, Path(path), text)


class FilePairs(PairSource):
    """Pairs that lie in large files, found by an index."""

    def __init__(self, files: Sequence[Path], index: Callable[[Path], Any]) -> None:
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

    An index of each shard, made on the first visit, is kept beside it. What a damaged shard has lost
    is logged; it gives the pairs before the damage.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Make a source of tar files; raises `UserError` for one without a pair."""
        super().__init__(files, read_shard)

    def __getitem__(self, number: int) -> Pair:
        """Read a pair."""
        path, places = self.locate(number)
        with path.open("rb") as file:
            file.seek(int(places[0]) - tarfile.BLOCKSIZE)
            name = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "replace").name
            return Pair(f"{path.name}/{_key_of(name)[0]}", _read(file, *places[:2]), _text(file, places))

    def text(self, number: int) -> str:
        """Read the text of a pair alone."""
        path, places = self.locate(number)
        with path.open("rb") as file:
            return _text(file, places)


def read_shard(path: Path) -> NDArray[np.int64]:
    """Return offset and size of image, JSON and text of each pair of a tar file: int64 [N, 6], size 0 for none.

    Raises:
        UserError: there is no pair in it.
    """
    cache, state = Path(f"{path}{INDEX_ENDING}"), [path.stat().st_size, path.stat().st_mtime_ns]
    content = read_json(cache.read_text(errors="replace")) if cache.is_file() else None
    if not isinstance(content, dict) or content.get("version") != 1 or content.get("state") != state:
        pairs, lost = _index_shard(path)
        content = {"version": 1, "state": state, "lost": lost, "pairs": pairs}
        with contextlib.suppress(OSError):  # in a read-only folder it is made again each time
            write_json(cache, content)
    if content["lost"]:
        logger.warning("%s: %s", path, content["lost"])
    if not content["pairs"]:
        actual = content["lost"] or "an empty archive"
        raise user_error(
            str(path), "a tar file with images and texts, not compressed", actual, "write it again, or remove it"
        )
    return np.array(content["pairs"], dtype=np.int64)


def _index_shard(path: Path) -> tuple[list[list[int]], str]:
    """Return the places of the pairs, and a sentence on what is missing."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    size, end, alone = path.stat().st_size, 0, 0
    with contextlib.suppress(tarfile.ReadError), tarfile.open(path, "r:") as archive:
        for member in archive:
            end = member.offset_data + member.size
            if not member.isfile() or end > size:
                alone += member.isfile() or member.islnk()
                continue
            key, kind = _key_of(member.name)
            parts = members.setdefault(key, {})
            alone += kind in parts
            parts[kind] = (member.offset_data, member.size)
    pairs = []
    for parts in members.values():
        if "image" in parts and (".json" in parts or ".txt" in parts):
            pairs.append([*parts["image"], *parts.get(".json", (0, 0)), *parts.get(".txt", (0, 0))])
        else:
            alone += 1
    # An archive ends with two empty blocks; Python's reader takes damage for the end.
    with path.open("rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        rest = file.read(2 * tarfile.BLOCKSIZE)
    damaged = end > size or len(rest) < 2 * tarfile.BLOCKSIZE or any(rest)
    lost = [f"damaged after {min(end, size)} of {size} bytes"] if damaged else []
    lost += [f"{alone} files without a partner, or cut"] if alone else []
    return pairs, ", ".join(lost)


def _key_of(name: str) -> tuple[str, str]:
    """Return the key of a member, all before the first dot of its name, and `image` or its ending."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, endings = base.partition(".")
    ending = f".{endings.rsplit('.', 1)[-1].lower()}"
    return f"{folder}/{stem}" if folder else stem, "image" if ending in IMAGE_ENDINGS else ending


def _text(file: Any, places: Any) -> str:
    """Return the JSON of a pair where it has words, else its text."""
    texts = [_read(file, *places[i : i + 2]).decode("utf-8", "replace") for i in (2, 4) if places[i + 1]]
    if len(texts) == 2 and not _has_words(read_json(texts[0])):
        return texts[1]
    return texts[0] if texts else ""


def _has_words(content: Any) -> bool:
    return isinstance(content, list) or (isinstance(content, dict) and any(content.get(key) for key in CAPTION_KEYS))


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(int(offset))
    return file.read(int(size))


def read_json(text: str) -> Any:
    """Return a JSON object or list, and nothing for any other text."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict | list) else None


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
        return Pair(f"{path.name}/{key}", base64.b64decode(image, validate=True), text)

    def text(self, number: int) -> str:
        """Read the text of a pair alone."""
        path, (_, text_at) = self.locate(number)
        return _line(self.texts[path], text_at)[1]


def text_file_of(path: Path) -> Path:
    """Return the text file that upstream reads beside an image file.

    Raises:
        UserError: its name does not say that it holds images.
    """
    for old, new in (("images", "text"), ("image", "text"), ("img", "caption")):
        if old in path.name:
            return path.with_name(path.name.replace(old, new))
    expected = "a TSV file with 'image' or 'img' in its name, which 'text' or 'caption' takes the place of beside it"
    raise user_error(str(path), expected, path.name, "rename the two files")


def line_index(path: Path) -> NDArray[np.int64]:
    """Return the byte offset of each line: from `<stem>.lineidx`, which is written where it is missing or stale."""
    index = path.with_suffix(".lineidx")
    if index.is_file():
        found = _numbers(index)
        if len(found) and _begins_last_line(path, int(found[-1])):
            return found
    offsets, position = [], 0
    with path.open("rb") as lines:
        for line in lines:
            offsets.append(position)
            position += len(line)
    with contextlib.suppress(OSError), atomic_write(index) as file:
        file.write("".join(f"{offset}\n" for offset in offsets).encode())
    return np.array(offsets, dtype=np.int64)


def _begins_last_line(path: Path, offset: int) -> bool:
    with path.open("rb") as file:
        file.seek(max(offset - 1, 0))
        before = file.read(1) if offset else b"\n"
        return before == b"\n" and file.readline() != b"" and file.read(1) == b""


def _numbers(path: Path) -> NDArray[np.int64]:
    try:
        return np.array(path.read_text().split(), dtype=np.int64)
    except ValueError as error:
        raise user_error(str(path), "a whole number on each line", str(error), "remove the file") from error


def _tsv_lines(images: Path, texts: Path) -> NDArray[np.int64]:
    if not texts.is_file():
        raise user_error(str(images), f"its captions in {texts.name}", "no such file", "put it beside the images")
    offsets = line_index(images), line_index(texts)
    if len(offsets[0]) != len(offsets[1]):
        actual = f"{len(offsets[0])} images and {len(offsets[1])} texts"
        raise user_error(str(images), "as many lines as its captions", actual, "write both files again")
    lines, chosen = np.stack(offsets, axis=1), images.with_suffix(".linelist")
    if not chosen.is_file():
        return lines
    rows = np.sort(_numbers(chosen))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(lines):
        raise user_error(
            str(chosen), f"rows from 0 to {len(lines) - 1}", f"{rows[0]} to {rows[-1]}", "correct the file"
        )
    return lines[rows]


def _line(path: Path, offset: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(int(offset))
        parts = file.readline().decode("utf-8", "replace").rstrip("\r\n").split("\t")
    if len(parts) != 2:
        raise ValueError(f"{len(parts)} columns instead of 2 in {path.name}")
    return parts


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
        if isinstance(annotation.get("caption"), str):
            captions.setdefault(annotation.get("image_id"), []).append(annotation["caption"])
    if not captions:
        raise user_error(str(path), "annotations with captions", "none", fix)
    images = sorted((i for i in content["images"] if "file_name" in i), key=lambda image: image["id"])
    return PathPairs(
        Pair(str(image["id"]), folder / image["file_name"], json.dumps({"captions": captions[image["id"]]}))
        for image in images
        if image["id"] in captions
    )


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
    # Quotation marks are part of the words in TSV files.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        yield from csv.DictReader(file, **dialect)


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
