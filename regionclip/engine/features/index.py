"""Lookup of an image's features in a folder of shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from regionclip.engine.features.formats import IMAGE_ROWS, SHARD_KINDS, Chunk, Shards
from regionclip.engine.features.regions import Features
from regionclip.errors import user_error
from regionclip.files import read_json_file, write_json
from regionclip.records import ShardHeader

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


class FeatureFolder(Mapping[str, Features]):
    """Features in a folder of shards, by image name; each access reads only the rows of one image."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder; raises `UserError` if it has no index."""
        self.folder = Path(folder)
        content = read_json_file(self.folder / INDEX)
        if not content:
            fix = "let extract_region_features.py --format safetensors run to its end"
            raise user_error(str(self.folder / INDEX), "an index of features", "none", fix)
        self._kind = SHARD_KINDS[content["format"]]()
        self._images: dict[str, tuple[str, int, int]] = content["images"]
        self.failures: dict[str, str] = content["failures"]
        """Errors of unreadable images, by name."""

    def __getitem__(self, name: str) -> Features:
        """Return `boxes`, `feats` and, if present, `classes` and `probs` of an image."""
        shard, first, count = self._images[name]
        rows = self._kind.read(self.folder / shard, first, count)
        return {key: value for key, value in rows.items() if key != IMAGE_ROWS}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the image names."""
        return iter(self._images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)
