"""`weights.lock`: the hashes of files without a published one, as they were first seen."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from regionclip.errors import user_error
from regionclip.files import atomic_write, cache_folder, download_folder, read_json_file
from regionclip.hub.downloads import file_hash
from regionclip.published import FOLDER, PublishedFile

NAME = "weights.lock"


def lock_path() -> Path:
    """Return the path of the lock file: beside the downloaded files, to be passed on with them."""
    return download_folder() / FOLDER / NAME


def pin(file: PublishedFile, path: Path, source: str) -> None:
    """Write the hash of a file that was just downloaded, or compare it with the one that was seen first.

    Raises:
        UserError: the file differs from the one that was seen first.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "weights.lock.guard"):
        entries = _read()
        if file.path in entries:
            _require(file, path, entries[file.path])
            return
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        entries[file.path] = {
            "size": path.stat().st_size,
            "sha256": file_hash(path),
            "date": today,
            "source": source,
        }
        with atomic_write(lock_path()) as out:
            out.write(json.dumps(dict(sorted(entries.items())), indent=1).encode())


def pinned_hash(file: PublishedFile) -> str:
    """Return the hash of a file as it was first seen; empty if it never was."""
    return str(_read().get(file.path, {}).get("sha256", ""))


def _read() -> dict[str, Any]:
    return read_json_file(lock_path()) or {}


def _require(file: PublishedFile, path: Path, entry: dict[str, Any]) -> None:
    if (found := file_hash(path)) != entry["sha256"]:
        expected = f"SHA-256 {entry['sha256']}, as first seen on {entry['date']} from {entry['source']} ({lock_path()})"
        fix = f"if the publishers replaced it, remove its entry from {lock_path()}"
        raise user_error(file.path, expected, found, fix)
