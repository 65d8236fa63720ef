"""WebDataset tar shards by index, with a cached index per shard that also records damage."""

from __future__ import annotations

import contextlib
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionclip.data.image_text.pairs import CAPTION_KEYS, FilePairs, Pair, read_json
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.data.tar_members import list_members
from regionclip.errors import user_error
from regionclip.files import write_json

logger = logging.getLogger(__name__)

INDEX_ENDING = ".index.json"


class ShardPairs(FilePairs):
    """WebDataset shards: tar files with `key.jpg` and `key.txt` or `key.json` next to each other.

    An index of each shard is created on first use and stored next to it. Losses in a damaged shard
    are logged; the pairs before the damage are used.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Create a source of tar files; raises `UserError` for one without a pair."""
        super().__init__(files, read_shard)

    def __getitem__(self, number: int) -> Pair:
        """Read a pair."""
        path, places = self.locate(number)
        with path.open("rb") as file:
            file.seek(int(places[0]) - tarfile.BLOCKSIZE)
            name = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "replace").name
            return Pair(f"{path.name}/{_key_of(name)[0]}", _read(file, *places[:2]), _text(file, places))

    def text(self, number: int) -> str:
        """Read only the text of a pair."""
        path, places = self.locate(number)
        with path.open("rb") as file:
            return _text(file, places)


def read_shard(path: Path) -> NDArray[np.int64]:
    """Return offset and size of image, JSON and text of each pair of a tar file: int64 [N, 6], size 0 if missing.

    Raises:
        UserError: the file has no pair.
    """
    cache, state = Path(f"{path}{INDEX_ENDING}"), [path.stat().st_size, path.stat().st_mtime_ns]
    content = read_json(cache.read_text(errors="replace")) if cache.is_file() else None
    if not isinstance(content, dict) or content.get("version") != 1 or content.get("state") != state:
        pairs, lost = _index_shard(path)
        content = {"version": 1, "state": state, "lost": lost, "pairs": pairs}
        with contextlib.suppress(OSError):  # in a read-only folder it is created again each time
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
    """Return the positions of the pairs, and a description of what is missing."""
    with path.open("rb") as file:
        listing = list_members(file)
    members: dict[str, dict[str, tuple[int, int]]] = {}
    alone = len(listing.cut)
    for name, offset, size in listing.members:
        key, kind = _key_of(name)
        parts = members.setdefault(key, {})
        alone += kind in parts
        parts[kind] = (offset, size)
    pairs = []
    for parts in members.values():
        if "image" in parts and (".json" in parts or ".txt" in parts):
            pairs.append([*parts["image"], *parts.get(".json", (0, 0)), *parts.get(".txt", (0, 0))])
        else:
            alone += 1
    lost = [listing.damage] if listing.damage else []
    lost += [f"{alone} files without a partner, or cut"] if alone else []
    return pairs, ", ".join(lost)


def _key_of(name: str) -> tuple[str, str]:
    """Return the key of a member, which is its name before the first dot, and `image` or its extension."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, endings = base.partition(".")
    ending = f".{endings.rsplit('.', 1)[-1].lower()}"
    return f"{folder}/{stem}" if folder else stem, "image" if ending in IMAGE_ENDINGS else ending


def _text(file: Any, places: Any) -> str:
    """Return the JSON of a pair if it has captions or tags, else its text."""
    texts = [_read(file, *places[i : i + 2]).decode("utf-8", "replace") for i in (2, 4) if places[i + 1]]
    if len(texts) == 2 and not _has_words(read_json(texts[0])):
        return texts[1]
    return texts[0] if texts else ""


def _has_words(content: Any) -> bool:
    return isinstance(content, list) or (isinstance(content, dict) and any(content.get(key) for key in CAPTION_KEYS))


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(int(offset))
    return file.read(int(size))
