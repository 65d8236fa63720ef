"""Files on this machine, and at addresses of fsspec such as `s3://bucket/photo.jpg`, shown without credentials."""

from __future__ import annotations

import functools
import posixpath
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from regionclip.errors import UserError, user_error
from regionclip.fingerprints import file_state

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(:|//)")
"""Start of an address; a drive of Windows has one letter."""

VERSION_KEYS = ("CRC", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "date_time")
"""What file systems of fsspec say of the version of a file."""

WAITS = (1.0, 4.0)
"""Seconds between attempts to read an address."""

FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, UserError, MemoryError)
"""Errors that another attempt does not mend."""


def is_address(name: str) -> bool:
    """Return whether a name is an address of fsspec, such as `s3://bucket/a.jpg` or `zip://a.jpg::photos.zip`."""
    return "://" in name and _ADDRESS.match(name) is not None


def without_credentials(text: str) -> str:
    """Return a text whose addresses have no user and password, and if of the web no query: it may sign them."""
    text = re.sub(r"(\w://)[^\s/'\"]*@", r"\1", text)
    return re.sub(r"((?:http|dav)s?://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text, flags=re.IGNORECASE)


def reason_of(error: Exception) -> str:
    """Return one line on why a file cannot be read, without credentials."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(without_credentials(text).split()) or type(error).__name__


def version_of(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return size and version of a file from what its file system says of it."""
    return info.get("size"), next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")


class FileSystem(NamedTuple):
    """A file system of fsspec."""

    files: Any
    path: str
    """Of the address that it was opened for."""
    before: str
    after: str
    """What stands before and after a path in an address."""


@functools.lru_cache(256)
def open_filesystem(address: str) -> FileSystem:
    """Return the file system of an address.

    Raises:
        UserError: an unknown protocol, a library that is missing, or an archive that cannot be opened.
    """
    shown = without_credentials(address)
    try:
        import fsspec
    except ImportError as error:
        raise user_error(shown, "the library fsspec", "not installed", 'pip install "regionclip[fsspec]"') from error
    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise user_error(shown, "the library of its protocol", str(error), "install it") from error
    except Exception as error:  # protocols raise what they like
        raise user_error(shown, "an address that fsspec opens", reason_of(error), "correct it") from None
    parts = address.split("::")
    number = next(number for number, part in enumerate(parts) if "://" in part)
    own = parts[number].rstrip("/") if path else parts[number]
    before = own[: len(own) - len(path)] if own.endswith(path) else f"{own.partition('://')[0]}://"
    links, rest = parts[:number], parts[number + 1 :]
    return FileSystem(
        files, path, "".join(f"{link}::" for link in links) + before, "".join(f"::{part}" for part in rest)
    )


@dataclass(frozen=True, eq=False)
class Location:
    """A file: a path on this machine, or one in the file system of an address."""

    path: str = field(repr=False)
    """Of a file system; empty for the address itself."""
    root: str = field(default="", repr=False)
    """Address of a file in the same file system, with its credentials; empty for this machine."""

    def __eq__(self, other: object) -> bool:
        """Return whether both are one file, however it was found."""
        return isinstance(other, Location) and self.address == other.address

    def __hash__(self) -> int:
        """Return the hash of the address."""
        return hash(self.address)

    @property
    def address(self) -> str:
        """The path or address, with credentials."""
        if not self.root or not self.path:
            return self.path or self.root
        system = open_filesystem(self.root)
        return f"{system.before}{self.path}{system.after}"

    @property
    def place(self) -> str:
        """The path or address, without credentials."""
        return without_credentials(self.address)

    @property
    def file(self) -> Path:
        """A path for the place: an address becomes folders below the root, an archive a folder around its files."""
        return path_of(self.place) if self.root else Path(self.path)

    def open(self) -> BinaryIO:
        """Open the file for reading, with `seek`."""
        if not self.root:
            return Path(self.path).open("rb")
        system = open_filesystem(self.root)
        return cast(BinaryIO, system.files.open(self.path or system.path, "rb"))

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """Return the content, or a part of it; an address that fails is tried again."""
        if not self.root:
            with self.open() as file:
                file.seek(start)
                return file.read(-1 if size is None else size)
        system = open_filesystem(self.root)
        part = {} if size is None else {"start": start, "end": start + size}
        content = _retried(lambda: system.files.cat_file(self.path or system.path, **part))
        if size is not None and len(content) > size:  # a server that knows no parts sends everything
            return content[start : start + size]
        return content

    def version(self) -> tuple[Any, ...]:
        """Return size and version; empty for none, which is reported when it is read."""
        if not self.root:
            return file_state(Path(self.path))
        try:
            system = open_filesystem(self.root)
            return version_of(system.files.info(self.path or system.path))
        except Exception:  # likewise
            return ()

    def beside(self, name: str) -> Location:
        """Return the file that a list at this location names: relative to its folder, absolute, or an address."""
        if is_address(name):
            return Location("", name)
        if not self.root:
            return Location(str(Path(self.path).parent / name))
        if posixpath.isabs(name):
            return Location(name)
        system = open_filesystem(self.root)
        return Location(posixpath.join(posixpath.dirname(self.path or system.path), name), self.root)


def path_of(place: str) -> Path:
    """Return a path below the root for an address: `/s3:/bucket/a.jpg`, or for a chain `/photos.zip/a.jpg`."""
    parts = [part for part in reversed(place.split("::")) if part.partition("://")[2] or "://" not in part]
    outer, *inner = parts or [place]
    steps = outer.replace("://", ":/").split("/")
    for part in inner:
        steps += part.partition("://")[2].split("/") if "://" in part else []
    return Path("/", *(step for step in steps if step not in ("", ".", "..")))


def _retried(read: Callable[[], bytes]) -> bytes:
    for wait in WAITS:
        try:
            return read()
        except FINAL_ERRORS:
            raise
        except Exception:  # protocols raise what they like
            time.sleep(wait)
    return read()
