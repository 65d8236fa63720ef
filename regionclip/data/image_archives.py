"""Images in tar shards (WebDataset) and Parquet files, listed without reading them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from regionclip.data.image_contents import Content, FileImage, LostImage, TableImage, TarImage
from regionclip.data.image_listing import ENDING, LeftOut, is_hidden
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.data.locations import Location, reason_of
from regionclip.data.remote_files import ending_of
from regionclip.data.table_rows import find_columns, open_table
from regionclip.data.tar_members import TarListing, TarMember, list_members
from regionclip.errors import UserError
from regionclip.files import cache_folder, read_json_file, write_json
from regionclip.fingerprints import fingerprint

PARQUET = ".parquet"
ARCHIVE_ENDINGS = frozenset({".tar", PARQUET})
"""Extensions, lower case, of files with many images."""

LONGEST_PART = 200
"""Maximum length in bytes of a file or folder name in an archive, which becomes one of the output."""


class Entry(NamedTuple):
    """An image that an archive has or names."""

    path: Path
    """Of the image, in the archive as in a folder."""
    name: str
    """The end of the path that belongs to the archive: with its own name."""
    content: Content | None
    """None for a file of this machine, which a table names."""


def read_archive(location: Location, version: tuple[Any, ...], left_out: LeftOut) -> Iterator[Entry]:
    """Yield the images of a tar or Parquet file, in order; what is damaged comes as `LostImage`.

    Args:
        location: the file.
        version: its size and time, as far as known.
        left_out: gets the skipped members.

    Raises:
        UserError: a table without a column of images, or a library that is missing.
    """
    place, count = location.place, 0
    read = _read_table if ending_of(place) == PARQUET else _read_tar
    try:
        for entry in read(location, place, version, left_out):
            count += 1
            yield entry
    except (UserError, MemoryError):
        raise
    except Exception as error:  # pyarrow's, or those of the protocol
        yield _lost(location, place, version, reason_of(error))
    else:
        if not count:
            yield _lost(location, place, version, "no images in it")


def _lost(location: Location, place: str, version: tuple[Any, ...], reason: str) -> Entry:
    return Entry(location.file, location.file.name, LostImage(place, location, version, reason))


def _inside(location: Location, name: str, content: Content) -> Entry:
    file = location.file
    return Entry(file / name, f"{file.name}/{name}", content)


def _read_tar(location: Location, place: str, version: tuple[Any, ...], left_out: LeftOut) -> Iterator[Entry]:
    listing = _listing(location, version)
    for name, offset, size in listing.members:
        inside = safe_name(name)
        if _is_image(inside, left_out):
            yield _inside(location, inside, TarImage(f"{place}/{inside}", location, version, offset, size))
    cut = [name for name in map(safe_name, listing.cut) if _is_image(name, LeftOut())]
    for name in cut:
        reason = listing.damage or "a link to another member"
        yield _inside(location, name, LostImage(f"{place}/{name}", location, version, reason))
    if listing.damage and not cut:
        compressed = "" if listing.members else ", or compressed, which a tar file must not be here"
        yield _lost(location, place, version, listing.damage + compressed)


def _is_image(name: str, left_out: LeftOut) -> bool:
    path = PurePosixPath(name)
    if any(map(is_hidden, path.parts)):
        left_out["hidden"] += 1
    elif path.suffix.lower() in IMAGE_ENDINGS:
        return True
    elif path.suffix.lower() not in (".json", ".txt"):  # what WebDataset has next to its images
        left_out[ENDING + (path.suffix.lower() or "none")] += 1
    return False


def _listing(location: Location, version: tuple[Any, ...]) -> TarListing:
    """Return the members of a tar file, from the cache if it is unchanged: those of an address take reading it all."""
    place = location.place if location.root else str(Path(location.path).resolve())
    cache = cache_folder() / "tar_listings" / f"{fingerprint([place, version])}.json"
    known = read_json_file(cache) if version else None
    if known and known.keys() == {"members", "cut", "damage"}:
        return TarListing([TarMember(*member) for member in known["members"]], known["cut"], known["damage"])
    with location.open() as file:
        listing = list_members(file)
    if version:
        with contextlib.suppress(OSError, ValueError):  # names need not be UTF-8
            write_json(cache, {"members": listing.members, "cut": listing.cut, "damage": listing.damage})
    return listing


def _read_table(location: Location, place: str, version: tuple[Any, ...], left_out: LeftOut) -> Iterator[Entry]:
    table = open_table(location)
    columns = find_columns(table.schema_arrow, place)
    read = [columns.images] if columns.are_paths else [columns.names] if columns.names else []
    row = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        values = _values(table, group, read[0]) if read else [None] * rows
        for number, value in enumerate(values, start=row):
            if columns.are_paths:
                yield _path_entry(location, place, version, number, value)
                continue
            inside = safe_name(value) if value else str(number)
            content = TableImage(f"{place}/{inside}", location, version, columns.images, number)
            yield _inside(location, inside, content)
        row += rows


def _values(table: Any, group: int, column: str) -> list[Any]:
    values = table.read_row_group(group, columns=[column]).column(0).to_pylist()
    key = column.rpartition(".")[2]
    return [value.get(key) if isinstance(value, dict) else value for value in values]


def _path_entry(location: Location, place: str, version: tuple[Any, ...], row: int, name: str | None) -> Entry:
    if not name:
        return _inside(location, str(row), LostImage(f"{place}/{row}", location, version, "no path in this row"))
    found = location.beside(name)
    content = FileImage(found.place, found) if found.root else None
    return Entry(found.file, found.file.name, content)


def safe_name(name: str) -> str:
    """Return the name of a member as a relative path that leads nowhere else, with parts that a file can have."""
    parts = [part for part in name.replace("\\", "/").replace("\0", "").split("/") if part not in ("", ".", "..")]
    return "/".join(map(_shortened, parts)) or "unnamed"


def _shortened(part: str) -> str:
    if len(os.fsencode(part)) <= LONGEST_PART:
        return part
    return hashlib.sha256(os.fsencode(part)).hexdigest() + PurePosixPath(part).suffix[:10]
