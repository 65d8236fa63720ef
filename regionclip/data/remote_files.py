"""Searching file systems of fsspec: an address of a file, a folder, or a pattern such as `s3://bucket/*.jpg`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from regionclip.data.image_listing import ENDING, LeftOut, is_hidden
from regionclip.data.locations import Location, is_address, open_filesystem, reason_of, version_of, without_credentials
from regionclip.errors import UserError, user_error

WEB = ("http", "https")
"""Protocols whose files may have any name, and whose `?` begins a query."""


def ending_of(name: str) -> str:
    """Return the extension of a path or address, lower case, without the query of an address."""
    if is_address(name):
        name = without_credentials(next(part for part in name.split("::") if "://" in part))
    return posixpath.splitext(name)[1].lower()


def find_remote(address: str, known: Collection[str], left_out: LeftOut) -> list[tuple[Location, tuple[Any, ...]]]:
    """Return the files of an address, with size and version of each as far as known.

    Args:
        address: a file; a folder, searched with those in it; or a pattern.
        known: accepted extensions, lower case. A single file of the web may have any.
        left_out: gets the skipped entries.

    Raises:
        UserError: nothing found, another extension, or a file system that cannot be opened.
    """
    system, shown = open_filesystem(address), without_credentials(address)
    try:
        found = dict(_entries(system.files, system.path, left_out))
    except UserError:
        raise
    except Exception as error:  # protocols raise what they like
        raise user_error(shown, "an address that can be read", reason_of(error), "correct it") from None
    if list(found) == [system.path]:
        if ending_of(address) not in known and not address.startswith(WEB):
            expected = f"a file ending in {', '.join(sorted(known))}"
            raise user_error(shown, expected, ending_of(address) or "none", "convert it")
        return [(Location("", address), version_of(found[system.path]))]
    files = []
    for path in sorted(found):
        ending = ending_of(path)
        if ending in known:
            files.append((Location(path, address), version_of(found[path])))
        else:
            left_out[ENDING + (ending or "none")] += 1
    if not files:
        actual = f"none (left out: {left_out})" if left_out else "none"
        raise user_error(shown, "images", actual, "correct the address; patterns belong in quotes")
    return files


def _entries(files: Any, path: str, left_out: LeftOut) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield paths and descriptions of files."""
    is_web = path.startswith(WEB)
    before_pattern, *pattern = re.split(r"[*[]" if is_web else r"[*?[]", path, maxsplit=1)
    if pattern:
        below, found = posixpath.dirname(before_pattern), files.glob(path, detail=True)
    elif (is_web and path.endswith("/")) or (not is_web and files.isdir(path)):
        below, found = path, files.find(path, detail=True)
    else:
        yield path, files.info(path)
        return
    for name, info in found.items():
        if info.get("type") == "directory":
            left_out.update({} if "**" in path else {"folders": 1})
        elif any(map(is_hidden, posixpath.relpath(name, below or ".").split("/"))):
            left_out["hidden"] += 1
        else:
            yield name, info
