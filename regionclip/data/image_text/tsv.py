"""Upstream's TSV files by index: base64 images and texts in parallel lines."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regionclip.data.image_text.pairs import FilePairs, Pair
from regionclip.errors import user_error
from regionclip.files import atomic_write


class TSVPairs(FilePairs):
    """Upstream's TSV files: `images*.tsv` with key and base64, `text*.tsv` with key and text, in parallel lines."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Create a source of image files; their text files are next to them."""
        self.texts = {path: text_file_of(path) for path in files}
        super().__init__(files, lambda path: _tsv_lines(path, self.texts[path]))

    def __getitem__(self, number: int) -> Pair:
        """Read a pair.

        Raises:
            ValueError: the two lines have different keys, or are no TSV.
        """
        path, (image_at, text_at) = self.locate(number)
        key, image = _line(path, image_at)
        text_key, text = _line(self.texts[path], text_at)
        if key != text_key:
            raise ValueError(f"line of {key} in {path.name}, of {text_key} in {self.texts[path].name}")
        return Pair(f"{path.name}/{key}", base64.b64decode(image, validate=True), text)

    def text(self, number: int) -> str:
        """Read only the text of a pair."""
        path, (_, text_at) = self.locate(number)
        return _line(self.texts[path], text_at)[1]


def text_file_of(path: Path) -> Path:
    """Return the text file that upstream reads along with an image file.

    Raises:
        UserError: the file name is not that of an image file.
    """
    for old, new in (("images", "text"), ("image", "text"), ("img", "caption")):
        if old in path.name:
            return path.with_name(path.name.replace(old, new))
    expected = "a TSV file with 'image' or 'img' in its name, which 'text' or 'caption' takes the place of beside it"
    raise user_error(str(path), expected, path.name, "rename the two files")


def line_index(path: Path) -> NDArray[np.int64]:
    """Return the byte offset of each line: from `<stem>.lineidx`, which is written if missing or stale."""
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
