"""Searching folders for files, with counts of skipped entries by reason."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
"""Folders of macOS archives and network drives with metadata copies of the files next to them."""

RESULTS_MARK = ".regionclip_results"
"""File in the output folder of `detect`."""

RESULT_FOLDERS = frozenset({"crops", "drawings", "thumbnails", "videos"})
"""Its subfolders with images and videos, which are no inputs."""

ENDING = "ending "
"""Prefix of the skip reason for a file extension."""


class LeftOut(Counter[str]):
    """Number of skipped entries of a search, by reason."""

    def __str__(self) -> str:
        """Return one line, such as `2 hidden, 3 of other endings (.txt 2, none 1)`; empty if there are none."""
        endings = {key.removeprefix(ENDING): count for key, count in self.items() if key.startswith(ENDING)}
        parts = [f"{count} {reason}" for reason, count in self.items() if not reason.startswith(ENDING)]
        if endings:
            details = ", ".join(f"{ending} {count}" for ending, count in sorted(endings.items()))
            parts.append(f"{sum(endings.values())} of other endings ({details})")
        return ", ".join(parts)


def names_below_common_folder(files: Sequence[str | Path], folders: Sequence[Path] | None = None) -> list[str]:
    """Return the paths of files relative to the deepest folder that has all of them, with `/`.

    Args:
        files: N paths.
        folders: of each, by default those that they are in; of those in an archive, that of the archive.
    """
    paths = [Path(file) for file in files]
    root = os.path.commonpath(folders or [path.parent for path in paths]) if paths else ""
    return [path.relative_to(root).as_posix() for path in paths]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden: `.git`, `._photo.jpg`, `@eaDir`."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def files_in_folder(
    folder: Path,
    endings: Collection[str],
    left_out: LeftOut,
    *,
    recursive: bool = True,
    without: Path | None = None,
) -> list[Path]:
    """Return the files of a folder, sorted; symlinked folders are visited once, so that loops end.

    Images that `detect` wrote are skipped.

    Args:
        folder: where to search.
        endings: accepted file extensions, lower case, with the dot.
        left_out: gets the skipped entries.
        recursive: search subfolders.
        without: a subfolder to skip.
    """
    search = _Search(endings, left_out, without)
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        # Symlinked folders last, so that files reachable without a symlink keep their plain path.
        place = (folders or links).popleft()
        if not search.enter(place):
            continue
        for path in search.sub_folders(place):
            if recursive:
                (links if path.is_symlink() else folders).append(path)
            else:
                left_out["sub-folders"] += 1
    return sorted(search.found)


class _Search:
    def __init__(self, endings: Collection[str], left_out: LeftOut, without: Path | None) -> None:
        self.endings, self.left_out = endings, left_out
        self.without = None if without is None else os.path.realpath(without)
        self.found: list[Path] = []
        self._entered: set[tuple[int, int]] = set()

    def enter(self, folder: Path) -> bool:
        """Return whether to visit a folder, which is True only once."""
        try:
            state = folder.stat()
        except OSError:
            self.left_out["folders that cannot be opened"] += 1
            return False
        identity = state.st_dev, state.st_ino
        if os.path.realpath(folder) == self.without:
            self.left_out["folder of results"] += 1
            return False
        if identity in self._entered:
            self.left_out["linked folders that were looked into before"] += 1
            return False
        self._entered.add(identity)
        return True

    def sub_folders(self, folder: Path) -> list[Path]:
        """Collect the files of a folder, and return its subfolders."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.left_out["folders that cannot be opened"] += 1
            return []
        skipped = RESULT_FOLDERS if any(entry.name == RESULTS_MARK for entry in entries) else frozenset()
        folders = []
        for entry in entries:
            path = folder / entry.name
            if is_hidden(entry.name):
                self.left_out["hidden"] += 1
            elif entry.name in skipped and entry.is_dir():
                self.left_out["folder of results"] += 1
            elif entry.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where one may not look
                self.left_out["broken links"] += 1
            elif entry.is_dir():
                folders.append(path)
            elif not entry.is_file():
                self.left_out["neither files nor folders"] += 1
            elif path.suffix.lower() in self.endings:
                self.found.append(path)
            else:
                self.left_out[ENDING + (path.suffix.lower() or "none")] += 1
        return folders


def is_among_results(path: Path, root: Path) -> bool:
    """Return whether `detect` wrote a file below a folder, which was not named itself."""
    folders = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
    return any(folder.name in RESULT_FOLDERS and os.path.lexists(folder.parent / RESULTS_MARK) for folder in folders)


def once(paths: Iterable[Path]) -> list[Path]:
    """Return files sorted and unique after resolving symlinks, preferring a path whose folder is no symlink."""
    kept: dict[str, Path] = {}
    by_link = {path: os.path.realpath(path.parent) for path in paths}
    for path in sorted(by_link, key=lambda path: (by_link[path] != os.path.abspath(path.parent), path)):  # noqa: PTH100 - Path.absolute keeps `..`
        kept.setdefault(f"{by_link[path]}/{path.name}", path)
    return sorted(kept.values())
