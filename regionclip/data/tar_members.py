"""Members of a tar file by their positions, and where the file is damaged."""

from __future__ import annotations

import contextlib
import os
import tarfile
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple


class TarMember(NamedTuple):
    """A file in a tar file."""

    name: str
    offset: int
    """First byte of its content."""
    size: int


@dataclass
class TarListing:
    """What a tar file has."""

    members: list[TarMember] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """Names of files whose content the archive lacks: at its end, or as a hard link."""
    damage: str = ""
    """Such as `damaged after 512 of 2048 bytes`; empty for a complete archive."""


def list_members(file: BinaryIO) -> TarListing:
    """Return the files of an uncompressed tar file that is opened for reading."""
    size, end, listing = file.seek(0, os.SEEK_END), 0, TarListing()
    file.seek(0)
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            end = member.offset_data + member.size
            if member.isfile() and end <= size:
                listing.members.append(TarMember(member.name, member.offset_data, member.size))
            elif member.isfile() or member.islnk():
                listing.cut.append(member.name)
    # A complete archive ends with two empty blocks; Python's reader takes damage for the end.
    file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    rest = file.read(2 * tarfile.BLOCKSIZE)
    if end > size or len(rest) < 2 * tarfile.BLOCKSIZE or any(rest):
        listing.damage = f"damaged after {min(end, size)} of {size} bytes"
    return listing
