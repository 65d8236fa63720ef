"""Files on Google Drive, through gdown (extra `drive`)."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionclip.errors import user_error
from regionclip.hub.transfer import Progress

DRIVE = "drive://"
"""Scheme of Google Drive: `drive://FILE_ID`, or `drive://folders/FOLDER_ID/path/in/it`."""

_FOLDERS = "folders/"


def web_page(address: str) -> str:
    """Return the page of a file or of the folder that has it, for a browser."""
    rest = address.removeprefix(DRIVE)
    if rest.startswith(_FOLDERS):
        return f"https://drive.google.com/drive/folders/{rest.split('/')[1]}"
    return f"https://drive.google.com/file/d/{rest}/view"


def has_gdown() -> bool:
    """Return whether gdown is installed."""
    return find_spec("gdown") is not None


def fetch_from_drive(address: str, part: Path, progress: Progress) -> None:
    """Complete a partial file from Google Drive.

    Raises:
        UserError: gdown is not installed, no such file in the folder, or Google refuses.
    """
    page = web_page(address)
    try:
        import gdown
    except ImportError as error:
        fix = f'pip install "regionclip[drive]", or download it from {page}'
        raise user_error(address, "gdown, which downloads from Google Drive", "not installed", fix) from error
    fix = f"try again later, for Google limits downloads, or download it from {page}"
    try:
        file_id = _find_in_folder(gdown, address)
        options = {"resume": True, "quiet": True, "progress": _Count(progress)}
        fetched = gdown.download(id=file_id, output=str(part), **options) if file_id else None
    except Exception as error:  # gdown's own, those of requests, and of the page that it reads
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise user_error(address, "a file on Google Drive", reason, fix) from error
    if file_id is None:
        raise user_error(address, "a file of this name in the folder", "none", f"look into {page}")
    if fetched is None or not part.is_file():
        raise user_error(address, "a file on Google Drive", "nothing", fix)
    if _beginning(part).lower().lstrip().startswith((b"<!doctype html", b"<html")):
        part.unlink()
        raise user_error(address, "a file on Google Drive", "a web page", fix)


class _Count:
    """Counts what gdown reports: bytes so far, and of the file if known."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done = progress, 0

    def __call__(self, done: int, total: int | None) -> None:
        if not self.done:
            self.progress.expect(total or 0)
        self.progress.advance(done - self.done)
        self.done = done


def _find_in_folder(gdown: Any, address: str) -> str | None:
    """Return the id of a file; None if the folder has none of this path."""
    rest = address.removeprefix(DRIVE)
    if not rest.startswith(_FOLDERS):
        return rest
    _, folder, path = rest.split("/", 2)
    with tempfile.TemporaryDirectory() as scratch:
        files = gdown.download_folder(id=folder, output=scratch, skip_download=True, quiet=True)
    return next((file.id for file in files or () if Path(file.path).as_posix().endswith(path)), None)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(15)
