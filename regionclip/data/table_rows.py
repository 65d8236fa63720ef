"""Rows of Parquet files with images or their paths: which columns have them, and one row after the other."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from regionclip.data.image_text.tables import FILE_KEYS, import_parquet
from regionclip.data.locations import Location, reason_of
from regionclip.errors import user_error

BYTES_KEYS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "content")
"""Columns that hold the bytes of images, or structs of `bytes` and `path` as Hugging Face datasets have them."""

PATH_KEYS = ("path", *FILE_KEYS, "file", "url", "uri", "address")
"""Columns that hold paths or addresses of images."""

NAME_KEYS = ("__key__", "key", "path", *FILE_KEYS)
"""Columns with names of the images whose bytes a table has."""

BATCH, BATCHES = 16, 4
"""Rows that are read at once, and batches that are kept: a few threads read a few rows ahead."""


class ImageColumns(NamedTuple):
    """Columns of a table."""

    images: str
    """Of bytes, structs or paths."""
    are_paths: bool
    names: str
    """Of names, `column.path` for those in structs; empty for none."""


def find_columns(schema: Any, what: str) -> ImageColumns:
    """Return the columns of images and names in a Parquet schema.

    Args:
        schema: of pyarrow.
        what: the table, for messages.

    Raises:
        UserError: no such column, or several.
    """
    fields = {field.name: field.type for field in schema}
    contents = {name: kind for name, kind in fields.items() if _is_content(kind)}
    chosen = _choose(BYTES_KEYS, list(contents))
    if chosen:
        kind = contents[chosen]
        in_struct = _is_struct(kind) and any(kind.field(i).name == "path" for i in range(kind.num_fields))
        names = next((name for name in NAME_KEYS if name in fields and _is_text(fields[name])), "")
        return ImageColumns(chosen, False, f"{chosen}.path" if in_struct and not names else names)
    chosen = _choose(PATH_KEYS, [name for name, kind in fields.items() if _is_text(kind)])
    if chosen:
        return ImageColumns(chosen, True, "")
    expected = f"a column of images ({', '.join(BYTES_KEYS)}) or one of paths ({', '.join(dict.fromkeys(PATH_KEYS))})"
    actual = ", ".join(f"{name} ({kind})" for name, kind in fields.items())[:300]
    raise user_error(what, expected, actual or "no columns", "rename the column")


def open_table(location: Location) -> Any:
    """Return the `pyarrow.parquet.ParquetFile` of a location, which reads a piece at a time."""
    return import_parquet(location.place).ParquetFile(location.open(), buffer_size=1 << 20, pre_buffer=False)


class TableRows:
    """Rows of a column by number, best in ascending order: few are in memory, and none is read twice."""

    def __init__(self, location: Location, column: str) -> None:
        """Open a table."""
        self._table, self._column = open_table(location), column
        sizes = [self._table.metadata.row_group(i).num_rows for i in range(self._table.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, list[Any]]] = deque(maxlen=BATCHES)
        self._group, self._next = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._broken: dict[int, tuple[int, str]] = {}

    def __getitem__(self, row: int) -> Any:
        """Return a value; raises `OSError` where the file is damaged."""
        with self._lock:
            for start, values in self._kept:
                if start <= row < start + len(values):
                    return values[row - start]
            if not self._next <= row < self._starts[self._group + 1]:
                self._begin(row)
            try:
                return self._read(row)
            except Exception as error:  # pyarrow's, or those of the protocol
                _, reason = self._broken.setdefault(self._group, (self._next, reason_of(error)))
                raise OSError(reason) from None

    def _begin(self, row: int) -> None:
        self._group = next(i for i, end in enumerate(self._starts[1:]) if row < end)
        self._next = self._starts[self._group]
        self._batches = self._table.iter_batches(BATCH, row_groups=[self._group], columns=[self._column])

    def _read(self, row: int) -> Any:
        first, reason = self._broken.get(self._group, (row + 1, ""))
        if row >= first:
            raise OSError(reason)  # and is not read up to the damage again
        for batch in self._batches:
            start, values = self._next, batch.column(0).to_pylist()
            self._kept.append((start, values))
            self._next += len(values)
            if row < self._next:
                return values[row - start]
        raise OSError(f"row {row} is missing")


@functools.lru_cache(4)
def rows_of(location: Location, column: str, version: tuple[Any, ...] = ()) -> TableRows:
    """Return the rows of a table, which stays open; those of another version are read again."""
    return TableRows(location, column)


def _choose(keys: tuple[str, ...], names: list[str]) -> str:
    return next((key for key in keys if key in names), names[0] if len(names) == 1 else "")


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_content(kind: Any) -> bool:
    if _is_struct(kind):
        kinds = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in kinds and (_is_content(kinds["bytes"]) or str(kinds["bytes"]) == "null")  # no row has any
    return str(kind) in ("binary", "large_binary", "binary_view")
