"""Writing of image-text pairs: tar shards, and upstream's TSV files."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from regionclip.data.image_text.pairs import Pair, read_json
from regionclip.data.image_text.tsv import line_index, text_file_of
from regionclip.data.images import DECODING_ERRORS, IMAGE_ENDINGS
from regionclip.errors import user_error
from regionclip.files import atomic_write

PAIRS_IN_FILE = 10_000
"""Default number of pairs per file."""


def write_shards(
    pairs: Iterable[Pair], folder: str | Path, size: int = PAIRS_IN_FILE, *, kept: Sequence[Path] = ()
) -> list[Path]:
    """Write WebDataset shards `00000.tar`, ... of `size` pairs each; return the files.

    Args:
        pairs: what to write.
        folder: of the shards.
        size: pairs in a shard.
        kept: the first shards, which an interrupted run has written; `pairs` follow those in them.

    Raises:
        UserError: the folder already has other shards.
    """
    _refuse_old(folder, "*.tar", kept)
    written = list(kept)
    for number, part in enumerate(_parts(pairs, size), start=len(kept)):
        path = Path(folder, f"{number:05d}.tar")
        with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for i, pair in enumerate(part):
                image = image_bytes(pair)
                _add(archive, f"{number:05d}{i:06d}.{image_ending(image)}", image)
                ending = "json" if read_json(pair.text) else "txt"
                _add(archive, f"{number:05d}{i:06d}.{ending}", pair.text.encode())
        written.append(path)
    return written


def write_tsv(pairs: Iterable[Pair], folder: str | Path, size: int = PAIRS_IN_FILE) -> list[Path]:
    """Write `images-00000.tsv` and `text-00000.tsv` with their line indices, as upstream reads them.

    Returns:
        The image files.

    Raises:
        UserError: the folder already has such files.
    """
    _refuse_old(folder, "images-*.tsv")
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
    """Return the encoded image of a pair."""
    return pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes()


def image_ending(image: bytes) -> str:
    """Return the extension of an encoded image; `jpg` if unknown, since reading relies on the content."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            ending = str(opened.format).lower()
    except DECODING_ERRORS:
        return "jpg"
    return ending if f".{ending}" in IMAGE_ENDINGS - {".jpeg"} else "jpg"


def _parts(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    pairs = iter(pairs)
    while part := list(islice(pairs, size)):
        yield part


def _refuse_old(folder: str | Path, pattern: str, kept: Sequence[Path] = ()) -> None:
    old = sorted(set(Path(folder).glob(pattern)) - set(kept))
    if old:
        fix = "name another folder, or remove the old files"
        raise user_error(str(folder), f"a folder without {pattern}", f"{len(old)} such as {old[0].name}", fix)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
