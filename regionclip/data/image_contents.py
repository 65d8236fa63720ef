"""Images that are no files of this machine: at an address, in a tar file, or in a row of a table."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from regionclip.data.images import UnreadableImageError
from regionclip.data.locations import Location, reason_of
from regionclip.data.table_rows import rows_of
from regionclip.errors import UserError


class NamedBytes(io.BytesIO):
    """A file in memory that error messages call by a name."""

    def __init__(self, name: str, content: bytes) -> None:
        """Open the content."""
        super().__init__(content)
        self._name = name

    def __repr__(self) -> str:
        """Return the name, as the messages of Pillow have it."""
        return repr(self._name)

    def __str__(self) -> str:
        """Return the name."""
        return self._name


@dataclass(frozen=True)
class Content(ABC):
    """The bytes of an image, which are read when they are needed; can be sent to other processes."""

    place: str
    """Address, or archive and name within it, without credentials."""
    location: Location
    """The file that has it."""
    version: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """Size and time of that file; empty if unknown."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the encoded image."""

    def open(self) -> BinaryIO:
        """Return the encoded image as a file; raises `UnreadableImageError` if it cannot be read."""
        try:
            return NamedBytes(self.place, self.read())
        except (UnreadableImageError, UserError, MemoryError):
            raise
        except Exception as error:  # what protocols raise may show credentials
            raise UnreadableImageError(f"{self.place}: {reason_of(error)}") from None


@dataclass(frozen=True)
class FileImage(Content):
    """An image file, usually at an address."""

    def read(self) -> bytes:
        """Return the file."""
        return self.location.read()


@dataclass(frozen=True)
class TarImage(Content):
    """A member of a tar file."""

    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """Return the bytes of the member, without those around it."""
        content = self.location.read(self.offset, self.size)
        if len(content) < self.size:
            raise UnreadableImageError(f"{self.place}: the archive ends within it")
        return content


@dataclass(frozen=True)
class TableImage(Content):
    """A row of a Parquet file: bytes, or `bytes` or `path` of a struct."""

    column: str = ""
    row: int = 0

    def read(self) -> bytes:
        """Return the bytes of the row, or those of the file that it names."""
        value = rows_of(self.location, self.column, self.version)[self.row]
        if isinstance(value, dict):
            name = value.get("path")
            value = value.get("bytes") or (self.location.beside(name).read() if name else None)
        if not value:
            raise UnreadableImageError(f"{self.place}: no content in row {self.row}")
        return bytes(value)


@dataclass(frozen=True)
class LostImage(Content):
    """What is known to be missing, such as the rest of a damaged archive; counts as one image."""

    reason: str = ""

    def read(self) -> bytes:
        """Raise the reason."""
        raise UnreadableImageError(f"{self.place}: {self.reason}")


KINDS: dict[str, type[Content]] = {kind.__name__: kind for kind in (FileImage, TarImage, TableImage, LostImage)}


def to_text(content: Content) -> str:
    """Return a content as JSON, for another process of the same run: with its credentials, without its version."""
    return json.dumps({**asdict(content), "version": (), "kind": type(content).__name__})


def from_text(text: str) -> Content:
    """Return the content of a text of `to_text`."""
    fields = json.loads(text)
    return KINDS[fields.pop("kind")](**{**fields, "location": Location(**fields["location"]), "version": ()})
