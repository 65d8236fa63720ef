"""Names of output files: unique on any file system, and not too long."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from regionclip.files import read_json_file, write_json

LONGEST_NAME = 200
"""Maximum file name length in bytes."""

WRITTEN = ".regionclip.json"
"""File in a folder that lists what a run wrote there."""


def short(name: str, extension: str) -> str:
    """Return a name with an extension; the last part of a very long one becomes a hash, due to file system limits."""
    path = Path(name)
    if len(os.fsencode(path.name + extension)) > LONGEST_NAME:
        path = path.with_name(hashlib.sha256(os.fsencode(path.name)).hexdigest())
    return path.as_posix() + extension


def unique_names(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return a unique name for each file, also where case does not count: without its extension if that is enough.

    Args:
        names: of the files, with sub-folders, and a suffix of each, such as the number of a frame.
    """
    stems = [f"{PurePosixPath(name).with_suffix('')}{suffix}" for name, suffix in names]
    counts = Counter(stem.casefold() for stem in stems)
    taken = {stem.casefold() for stem in stems if counts[stem.casefold()] == 1}
    found = []
    for stem, (name, suffix) in zip(stems, names, strict=True):
        chosen = stem
        if counts[stem.casefold()] > 1:
            chosen, number = f"{name}{suffix}", 1
            while chosen.casefold() in taken:
                chosen, number = f"{name}{suffix}_{number}", number + 1
            taken.add(chosen.casefold())
        found.append(chosen)
    return found


def folder_of_class(word: str, class_id: int) -> str:
    """Return a folder name for a class; with its number where the class name cannot be one, or is long."""
    name = re.sub(r"[^\w. -]", "_", word).strip(". ")
    if name == word and len(os.fsencode(name)) <= LONGEST_NAME // 2:
        return name
    return f"{name[:40]}_{class_id}"


def forget_files(folder: Path) -> None:
    """Remove the files that an earlier run wrote into a folder, so that its results do not mix with new ones."""
    for name in (read_json_file(folder / WRITTEN) or {}).get("files", []):
        if ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute():
            (folder / name).unlink(missing_ok=True)


def note_files(folder: Path, files: Iterable[str]) -> None:
    """List the files that a run wrote into a folder, relative to it."""
    if folder.is_dir():
        write_json(folder / WRITTEN, {"files": sorted(files)})
