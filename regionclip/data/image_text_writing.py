"""Writing image-text pairs: tar shards, and upstream's TSV files."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from regionclip.data.image_text import Pair, line_index, text_file_of
from regionclip.files import atomic_write

PAIRS_IN_FILE = 10_000
"""Pairs of a shard, unless told otherwise."""


def write_shards(pairs: Iterable[Pair], folder: str | Path, size: int = PAIRS_IN_FILE) -> list[Path]:
    """Write WebDataset shards `00000.tar`, ... of `size` pairs each; return the files."""
    written = []
    for number, part in enumerate(_parts(pairs, size)):
        path = Path(folder, f"{number:05d}.tar")
        with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for i, pair in enumerate(part):
                image = image_bytes(pair)
                _add(archive, f"{number:05d}{i:06d}.{image_ending(image)}", image)
                ending = "json" if _is_json(pair.text) else "txt"
                _add(archive, f"{number:05d}{i:06d}.{ending}", pair.text.encode())
        written.append(path)
    return written


def write_tsv(pairs: Iterable[Pair], folder: str | Path, size: int = PAIRS_IN_FILE) -> list[Path]:
    """Write `images-00000.tsv` and `text-00000.tsv` with their line indices, as upstream reads them.

    Returns:
        The image files.
    """
    written = []
    for number, part in enumerate(_parts(pairs, size)):
        path = Path(folder, f"images-{number:05d}.tsv")
        with atomic_write(path) as images, atomic_write(text_file_of(path)) as texts:
            for pair in part:
                key = pair.key.replace("\t", " ")
                images.write(f"{key}\t{base64.b64encode(image_bytes(pair)).decode()}\n".encode())
                texts.write(f"{key}\t{' '.join(pair.text.split())}\n".encode())
        for file in (path, text_file_of(path)):
            file.with_suffix(".lineidx").unlink(missing_ok=True)
            line_index(file)
        written.append(path)
    return written


def image_bytes(pair: Pair) -> bytes:
    """Return the encoded picture of a pair."""
    return pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes()


def image_ending(image: bytes) -> str:
    """Return the file ending of an encoded picture, `jpg` where it is none."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return {"JPEG": "jpg"}.get(str(picture.format), str(picture.format).lower())
    except OSError:
        return "jpg"


def _parts(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    pairs = iter(pairs)
    while part := list(islice(pairs, size)):
        yield part


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
