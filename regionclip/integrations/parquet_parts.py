"""A folder of Parquet files with a row for each image: repeated rows, and what it has in total."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATH = "path"
"""Column that identifies an image."""

PENDING = ".pending.parquet"
"""How Ray calls the note of a file until it is written; the file begins with the same name."""

BUCKETS = 64
"""Files that hashes of paths are sorted into: memory is needed for one of them."""

HASHED = np.dtype([("hash", np.int64), ("part", np.int32)])


@dataclass
class PartsSummary:
    """Counts over all files."""

    images: int = 0
    words: Counter[str] = field(default_factory=Counter)
    """Detections by class name."""
    notes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def part_files(place: str) -> tuple[Any, list[str]]:
    """Return the file system of a folder, or address of one, and its Parquet files in order."""
    from pyarrow import fs

    files, folder = fs.FileSystem.from_uri(place) if "://" in place else (fs.LocalFileSystem(), place)
    entries = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return files, sorted(entry.path for entry in entries if entry.path.endswith(".parquet"))


def read_column(files: Any, part: str, name: str) -> list[Any]:
    """Return a column of a Parquet file."""
    from pyarrow import parquet

    return parquet.read_table(part, columns=[name], filesystem=files)[name].to_pylist()


def checkpoint_of(place: str) -> str:
    """Return the folder in which Ray notes the finished images of an output folder."""
    return f"{place}_checkpoint"


def recover(place: str) -> list[str]:
    """Remove what a killed job began to write, and return the paths of the images that it had noted as written.

    Ray itself does both only for a dataset that it reads from files.

    Args:
        place: folder of Parquet files, or address of one.
    """
    files, notes = part_files(checkpoint_of(place))
    begun = [note for note in notes if note.endswith(PENDING)]
    for note in begun:
        start = PurePosixPath(note).name.removesuffix(PENDING)
        for part in part_files(place)[1]:
            if PurePosixPath(part).name.startswith(start):
                files.delete_file(part)
        files.delete_file(note)
    return [path for note in notes if note not in begun for path in read_column(files, note, PATH)]


def drop_repeated(place: str) -> None:
    """Remove rows that a killed job wrote, but had no time to note: the next one has written them again.

    Memory does not grow with the number of rows, except for the few that may be repeated.

    Args:
        place: folder of Parquet files, or address of one.
    """
    files, parts = part_files(place)
    with tempfile.TemporaryDirectory() as scratch:
        suspects: set[int] = set()
        affected: set[int] = set()
        for rows in _hashes(files, parts, Path(scratch)):
            values, counts = np.unique(rows["hash"], return_counts=True)
            repeated = values[counts > 1]
            suspects.update(repeated.tolist())
            affected.update(rows["part"][np.isin(rows["hash"], repeated)].tolist())
    seen: set[str] = set()
    for number in sorted(affected):
        _keep_first(files, parts[number], suspects, seen)


def _hashes(files: Any, parts: list[str], scratch: Path) -> Iterator[NDArray[Any]]:
    """Yield the hashes of all paths, equal ones together, with the number of their part."""
    names = [scratch / str(bucket) for bucket in range(BUCKETS)]
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(name.open("wb")) for name in names]
        for number, part in enumerate(parts):
            paths = read_column(files, part, PATH)
            rows = np.array([(hash(path), number) for path in paths], HASHED)
            for bucket in np.unique(rows["hash"] % BUCKETS):
                buckets[bucket].write(rows[rows["hash"] % BUCKETS == bucket].tobytes())
    for name in names:
        yield np.fromfile(name, HASHED)


def _keep_first(files: Any, part: str, suspects: set[int], seen: set[str]) -> None:
    """Remove the rows of a part whose paths have been seen; only paths of suspected hashes are remembered."""
    from pyarrow import parquet

    kept = []
    for path in read_column(files, part, PATH):
        kept.append(path not in seen)
        if hash(path) in suspects:
            seen.add(path)
    if all(kept):
        return
    if any(kept):
        rows = parquet.read_table(part, filesystem=files).filter(kept)
        parquet.write_table(rows, f"{part}.tmp", filesystem=files)
        files.move(f"{part}.tmp", part)
    else:
        files.delete_file(part)


def summarize(place: str) -> PartsSummary:
    """Return the counts of a folder of Parquet files that `detect_to_parquet` wrote."""
    from pyarrow import parquet

    found = PartsSummary()
    files, parts = part_files(place)
    for part in parts:
        table = parquet.read_table(part, columns=["names", "notes", "error"], filesystem=files)
        found.images += len(table)
        for name, counts in (("names", found.words), ("notes", found.notes)):
            for values in table[name].to_pylist():
                counts.update(values)
        found.failures += [error for error in table["error"].to_pylist() if error]
    found.images -= len(found.failures)
    return found
