"""Output formats of features: one file per image as upstream, or shards of many images with an index."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from regionclip.errors import user_error
from regionclip.files import atomic_write
from regionclip.records import ShardHeader

Features = dict[str, Tensor]
"""`boxes` float [N, 4], xyxy in pixels of the original, and `feats` float [N, D], not normalized; `objectness` float
[N], in [0, 1], if asked for; with class embeddings also `classes` int64 [N], and `probs` float [N, K + 1], background
last. Rows of all entries correspond to the same regions."""

IMAGE_ROWS = "image"
"""Entry of a shard: int64 [N], for each region the index of its image in the shard's list."""


@dataclass(frozen=True)
class Chunk:
    """Chunk of images that one process computes and writes."""

    names: tuple[str, ...]
    path: Path
    """File of the chunk; for upstream's format, the folder."""


class FeatureFormat(Protocol):
    """Writes chunks, and reports which an earlier run has written."""

    def chunks(self, names: Sequence[str], images_at_once: int) -> list[Chunk]:
        """Split the images, in order, independent of the number of processes."""
        ...

    def is_done(self, chunk: Chunk, newest: float) -> bool:
        """Return whether the chunk is complete and newer than its newest image, modified at time `newest`."""
        ...

    def write(self, chunk: Chunk, features: Mapping[str, Features], failures: Mapping[str, str]) -> None:
        """Write the features of the readable images, and the errors of the others."""
        ...

    def failures(self, chunk: Chunk) -> list[str]:
        """Return an earlier run's errors about unreadable images of a finished chunk."""
        ...


class ImageFiles:
    """Upstream's format: `<name>.pth` for each image."""

    def __init__(self, folder: Path) -> None:
        """Create a writer to a folder."""
        self.folder = folder
        self._files: dict[str, Path] = {}

    def chunks(self, names: Sequence[str], images_at_once: int) -> list[Chunk]:
        """Return one chunk per batch."""
        self._files = output_files(names, self.folder)
        starts = range(0, len(names), images_at_once)
        return [Chunk(tuple(names[start : start + images_at_once]), self.folder) for start in starts]

    def is_done(self, chunk: Chunk, newest: float) -> bool:
        """Return whether all files exist, none partial or older than the images."""
        files = [self._files[name] for name in chunk.names]
        return all(zipfile.is_zipfile(file) and file.stat().st_mtime >= newest for file in files)

    def write(self, chunk: Chunk, features: Mapping[str, Features], failures: Mapping[str, str]) -> None:
        """Write the files."""
        for name, content in features.items():
            with atomic_write(self._files[name]) as file:
                torch.save(content, file)

    def failures(self, chunk: Chunk) -> list[str]:
        """Return nothing: images without a file are retried."""
        return []


class Shards:
    """Files of many images each, safetensors or Parquet, with `index.json` to locate images."""

    def __init__(self, folder: Path, kind: ShardKind, images_per_shard: int) -> None:
        """Create a writer of `images_per_shard` images per shard to a folder."""
        self.folder = folder
        self.kind = kind
        self.images_per_shard = images_per_shard

    def chunks(self, names: Sequence[str], images_at_once: int) -> list[Chunk]:
        """Return one chunk per shard."""
        starts = range(0, len(names), self.images_per_shard)
        ending = f"of-{len(starts):05}.{self.kind.ending}"
        return [
            Chunk(tuple(names[start : start + self.images_per_shard]), self.folder / f"features-{i:05}-{ending}")
            for i, start in enumerate(starts)
        ]

    def is_done(self, chunk: Chunk, newest: float) -> bool:
        """Return whether the shard exists, is complete, has these images, and is not older than they are."""
        about = self.kind.about(chunk.path)
        is_theirs = about is not None and tuple(about["images"]) == chunk.names
        return is_theirs and chunk.path.stat().st_mtime >= newest

    def write(self, chunk: Chunk, features: Mapping[str, Features], failures: Mapping[str, str]) -> None:
        """Write the shard: the regions of its images, concatenated."""
        counts = [len(features[name]["boxes"]) if name in features else 0 for name in chunk.names]
        entries = next(iter(features.values()), {})
        columns = {key: torch.cat([content[key] for content in features.values()]) for key in entries}
        columns[IMAGE_ROWS] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        about: ShardHeader = {"images": list(chunk.names), "counts": counts, "failures": dict(failures)}
        with atomic_write(chunk.path) as file:
            self.kind.write(file, columns, about)

    def failures(self, chunk: Chunk) -> list[str]:
        """Return the errors about unreadable images that the shard records."""
        about = self.kind.about(chunk.path)
        return list(about["failures"].values()) if about else []


class ShardKind(Protocol):
    """A file format of shards."""

    ending: str

    def write(self, file: BinaryIO, columns: Features, about: ShardHeader) -> None:
        """Write columns of equal length, and metadata."""
        ...

    def about(self, path: Path) -> ShardHeader | None:
        """Return the metadata of a file; None if it is missing or incomplete."""
        ...

    def read(self, path: Path, first: int, count: int) -> Features:
        """Return `count` rows of all columns, from row `first`."""
        ...


class SafetensorsShard:
    """One tensor per column; the metadata is in the header."""

    ending = "safetensors"

    def write(self, file: BinaryIO, columns: Features, about: ShardHeader) -> None:
        """Write columns of equal length, and metadata."""
        file.write(save({name: column.contiguous() for name, column in columns.items()}, {"about": json.dumps(about)}))

    def about(self, path: Path) -> ShardHeader | None:
        """Return the metadata of a file; None if it is missing or incomplete."""
        try:
            with safe_open(path, framework="pt") as file:
                return json.loads((file.metadata() or {}).get("about", "null"))
        except (SafetensorError, OSError):
            return None

    def read(self, path: Path, first: int, count: int) -> Features:
        """Return `count` rows of all columns, from row `first`."""
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name)[first : first + count] for name in file.keys()}  # noqa: SIM118


class ParquetShard:
    """One row per region: `image` (name), `boxes`, `feats`, `classes`, `probs`."""

    ending = "parquet"

    def __init__(self) -> None:
        """Raise a `UserError` if pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            fix = "pip install pyarrow, or use --format safetensors"
            raise user_error("--format parquet", "the library pyarrow", "not installed", fix) from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet

    def write(self, file: BinaryIO, columns: Features, about: ShardHeader) -> None:
        """Write columns of equal length, and metadata."""
        arrow = self._arrow
        names = arrow.DictionaryArray.from_arrays(columns[IMAGE_ROWS].numpy(), list(about["images"]))
        arrays: dict[str, Any] = {IMAGE_ROWS: names}
        for name, column in columns.items():
            if name != IMAGE_ROWS:
                flat = arrow.array(column.reshape(-1).numpy())
                # Vectors as fixed-size lists: [N, D]
                arrays[name] = flat if column.ndim == 1 else arrow.FixedSizeListArray.from_arrays(flat, column.shape[1])
        table = arrow.table(arrays).replace_schema_metadata({"about": json.dumps(about)})
        self._parquet.write_table(table, file)

    def about(self, path: Path) -> ShardHeader | None:
        """Return the metadata of a file; None if it is missing or incomplete."""
        try:
            metadata = self._parquet.read_schema(path).metadata or {}
        except (OSError, self._arrow.ArrowException):
            return None
        return json.loads(metadata.get(b"about", b"null"))

    def read(self, path: Path, first: int, count: int) -> Features:
        """Return `count` rows of all columns except the image names, from row `first`."""
        table = self._parquet.read_table(path).slice(first, count)
        columns = {name: table[name].combine_chunks() for name in table.column_names if name != IMAGE_ROWS}
        return {name: self._tensor(column) for name, column in columns.items()}

    def _tensor(self, column: Any) -> torch.Tensor:
        is_vector = self._arrow.types.is_fixed_size_list(column.type)
        flat = torch.from_numpy((column.flatten() if is_vector else column).to_numpy(zero_copy_only=False).copy())
        return flat.reshape(len(column), column.type.list_size) if is_vector else flat


def output_files(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return the file of each image: its name up to the first dot, as upstream, or the whole name on a collision."""
    stems = {name: f"{Path(name).parent}/".removeprefix("./") + Path(name).name.split(".")[0] for name in names}
    shared = Counter(stems.values())
    return {
        name: folder / f"{stem if not stem.endswith('/') and stem and shared[stem] == 1 else name}.pth"
        for name, stem in stems.items()
    }


SHARD_KINDS: dict[str, type[SafetensorsShard] | type[ParquetShard]] = {
    "safetensors": SafetensorsShard,
    "parquet": ParquetShard,
}
"""Values of --format other than `pth`."""


def make_format(name: str, folder: Path, images_per_shard: int) -> FeatureFormat:
    """Return the format `pth`, `safetensors` or `parquet`."""
    return ImageFiles(folder) if name == "pth" else Shards(folder, SHARD_KINDS[name](), images_per_shard)
