"""Lookup of an image's features in a folder of shards."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError

from regionclip.data.region_features.formats import IMAGE_ROWS, SHARD_KINDS, Chunk, Features, Shards
from regionclip.data.user_boxes import with_user_boxes
from regionclip.errors import user_error
from regionclip.files import read_json_file, resolve_path, write_json
from regionclip.records import Record, ShardHeader

logger = logging.getLogger(__name__)

MANIFEST = "features.json"
"""File that records which config and weights the files of a folder come from, and the space of their embeddings."""

INDEX = "index.json"
"""For each image: its shard, its first row, and its number of rows."""


def write_index(shards: Shards, chunks: Sequence[Chunk]) -> Path:
    """Write `index.json` of finished shards, and return its path."""
    images: dict[str, tuple[str, int, int]] = {}
    failures: dict[str, str] = {}
    for chunk in chunks:
        empty: ShardHeader = {"images": [], "counts": [], "failures": {}}
        about = shards.kind.about(chunk.path) or empty
        first = 0
        failures |= about["failures"]
        for name, count in zip(about["images"], about["counts"], strict=True):
            if name not in about["failures"]:
                images[name] = (chunk.path.name, first, count)
            first += count
    write_json(shards.folder / INDEX, {"format": shards.kind.ending, "images": images, "failures": failures})
    return shards.folder / INDEX


class StoredRows(NamedTuple):
    """Rows of a shard: the features of one image, read when they are needed."""

    shard: str
    """Path."""
    kind: str
    """Key of `SHARD_KINDS`."""
    first: int
    number: int

    @classmethod
    def none(cls) -> StoredRows:
        """Return the rows of an image without regions."""
        return cls("", "safetensors", 0, 0)

    def read(self) -> Features:
        """Return the features; raises `UserError` if the shard is gone or damaged."""
        if not self.shard:
            return {"boxes": torch.zeros(0, 4), "objectness": torch.zeros(0)}
        try:
            rows = SHARD_KINDS[self.kind]().read(Path(self.shard), self.first, self.number)
        except (OSError, SafetensorError) as error:
            fix = "run regionclip features again"
            raise user_error(self.shard, "a shard of region features", str(error), fix) from error
        return {key: value for key, value in rows.items() if key != IMAGE_ROWS}


def is_feature_folder(path: str | Path) -> bool:
    """Return whether a path is a folder of region features."""
    return (resolve_path(path) / INDEX).is_file()


def with_given_regions(records: Sequence[Record], names: Sequence[str], path: str | Path) -> list[Record]:
    """Return Detectron2's records with the regions of a file (`user_boxes`), or of a folder (`stored_regions`).

    An image that the file or folder lacks has none.

    Args:
        records: of N images.
        names: N unique names, with subfolders.
        path: a folder of region features, or a file for `read_boxes`.

    Raises:
        UserError: as `with_user_boxes`.
    """
    if not is_feature_folder(path):
        return with_user_boxes(records, names, path)
    folder = FeatureFolder(resolve_path(path))
    found = folder.find_all(names)
    if missing := found.count(None):
        logger.warning("%s has no regions of %d of %d images", path, missing, len(found))
    rows = [StoredRows.none() if name is None else folder.rows(name) for name in found]
    return [cast(Record, {**record, "stored_regions": row}) for record, row in zip(records, rows, strict=True)]


def _ends(path: str | Path) -> Iterator[str]:
    """Yield a path and what is left of it without its first folders."""
    parts = Path(path).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))


class FeatureFolder(Mapping[str, Features]):
    """Features in a folder of shards, by image name; each access reads only the rows of one image."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder; raises `UserError` if it has no index."""
        self.folder = Path(folder)
        content = read_json_file(self.folder / INDEX)
        if not content:
            fix = "let extract_region_features.py --format safetensors run to its end"
            raise user_error(str(self.folder / INDEX), "an index of features", "none", fix)
        self.kind: str = content["format"]
        self._images: dict[str, tuple[str, int, int]] = content["images"]
        about = read_json_file(self.folder / MANIFEST) or {}
        self.clip: str = about.get("clip", "")
        """Name of the CLIP size of the embeddings; empty in old folders."""
        self.dim: int | None = about.get("dim")
        self.failures: dict[str, str] = content["failures"]
        """Errors of unreadable images, by name."""

    def __getitem__(self, name: str) -> Features:
        """Return `boxes`, `feats` and, if present, `classes` and `probs` of an image."""
        return self.rows(name).read()

    def rows(self, name: str) -> StoredRows:
        """Return where the features of an image are."""
        shard, first, count = self._images[name]
        return StoredRows(str(self.folder / shard), self.kind, first, count)

    def find_all(self, paths: Sequence[str | Path]) -> list[str | None]:
        """Return the name of the image that each path ends with; None where there is none.

        Raises:
            UserError: no path has one, or two have the same.
        """
        found = [self._find(path) for path in paths]
        known = [name for name in found if name is not None]
        what, fix = f"regions in {self.folder}", "name the folder of these images"
        if paths and not known:
            raise user_error(what, f"those of {len(paths)} images, such as {paths[0]}", "none of them", fix)
        if len(set(known)) < len(known):
            (twice, _), *_ = Counter(known).most_common()
            fix = "extract regions with the folders in the names, or give images with unique names"
            raise user_error(what, "regions of one image each", f"{twice} for several images", fix)
        return found

    def failed(self, path: str | Path) -> bool:
        """Return whether the image that a path ends with could not be read when its features were extracted."""
        known = next((end for end in _ends(path) if end in self._images or end in self.failures), None)
        return known in self.failures

    def _find(self, path: str | Path) -> str | None:
        return next((end for end in _ends(path) if end in self._images), None)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the image names."""
        return iter(self._images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)
