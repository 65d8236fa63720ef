"""Checks that a published file is what its name says: by hash, or by the shape that identifies it."""

from __future__ import annotations

from pathlib import Path

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import user_error
from regionclip.hub.downloads import Expected
from regionclip.published import PublishedFile


def check(file: PublishedFile, first_seen: str = "") -> str:
    """Check a file that exists, and return what was checked: the hash, or an identifying shape.

    Args:
        file: on this machine.
        first_seen: its SHA-256 in the lock file, if no other is published.

    Raises:
        UserError: the content differs from the published one.
    """
    Expected(file.sha256 or first_seen, file.md5_prefix).require(
        file.place, str(file.place), "remove it and download it again"
    )
    if file.sha256:
        return "hash as published"
    return check_content(file, file.place) + (", hash as first seen" if first_seen else "")


def check_content(file: PublishedFile, path: Path) -> str:
    """Return the shape that identifies the content of a file at `path`; raises `UserError` for another content."""
    if not file.key:
        if file.shape:
            load_class_embeddings(path, rows=file.shape[0], dim=file.shape[1])
        return f"embeddings {list(file.shape)}" if file.shape else ""
    state = read_checkpoint(str(path)).state
    matching = [value for key, value in state.items() if key.endswith(file.key)]
    if not matching or tuple(matching[0].shape) != file.shape:
        actual = str(list(matching[0].shape)) if matching else f"no such entry among {len(state)}"
        fix = "download the file of this name again"
        raise user_error(str(path), f"{file.key} {list(file.shape)}", actual, fix)
    return f"{len(state)} entries, {file.key.split('.')[-2]} {list(file.shape)}"
