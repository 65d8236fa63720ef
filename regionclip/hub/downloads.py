"""Downloads: atomic, resumable, and verified by hash."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from regionclip.errors import UserError, user_error
from regionclip.files import cache_folder
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TRIES = 3
"""Attempts per download when connections break."""

TIMEOUT = 30.0
"""Seconds without data after which a connection counts as broken."""

HUB = "hf://"
"""Scheme of the Hugging Face hub: `hf://owner/repository/path/in/it`."""


def is_offline() -> bool:
    """Return whether REGIONCLIP_OFFLINE or HF_HUB_OFFLINE disables downloads."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("REGIONCLIP_OFFLINE", "HF_HUB_OFFLINE"))


def download(address: str, target: Path, sha256: str = "") -> Path:
    """Download a file unless it exists, and return its path.

    Partial downloads stay in `<target>.part` and are resumed by the next call. The target is
    created only when it is complete and has the hash.

    Args:
        address: `http://`, `https://`, `file://`, or `hf://owner/repository/path`.
        target: file to write.
        sha256: of the whole file; empty if none is published.

    Raises:
        UserError: offline, no such file, repeatedly broken connections, or a hash mismatch.
    """
    if target.is_file():
        _require_hash(target, sha256, str(target), "remove it and download it again")
        return target
    if is_offline():
        fix = f"unset REGIONCLIP_OFFLINE and HF_HUB_OFFLINE, or put the file there from {address}"
        raise user_error(str(target), "the file, for downloads are switched off", "no such file", fix)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / hashlib.sha256(str(part.resolve()).encode()).hexdigest()[:16]):
        if not target.is_file():
            fetch = _fetch_from_hub if address.startswith(HUB) else _fetch_with_retries
            fetch(address, part)
            try:
                _require_hash(part, sha256, address, "try again, or report it: the file on the server is another one")
            except UserError:
                _forget(part)
                raise
            part.replace(target)
            _forget(part)
    logger.info("Downloaded %s (%.0f MB)", target, target.stat().st_size / 1e6)
    return target


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_hash(path: Path, sha256: str, what: str, fix: str) -> None:
    if sha256 and (found := file_hash(path)) != sha256:
        raise user_error(what, f"SHA-256 {sha256}", found, fix)


def _fetch_with_retries(address: str, part: Path) -> None:
    for attempt in range(TRIES):
        try:
            _fetch(address, part)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == TRIES - 1:
                fix = "correct the address, or put the file in place by hand (docs/MODEL_ZOO.md)"
                raise user_error(address, "a file", f"HTTP {error.code} {error.reason}", fix) from error
        except ValueError as error:
            raise user_error(
                address, "https://..., file://... or hf://...", str(error), "correct the address"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == TRIES - 1:
                reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
                fix = "check the connection and run it again: it goes on where it stopped"
                raise user_error(address, "a file", f"no connection that lasts ({reason})", fix) from error
    raise AssertionError("every attempt returns or raises")


def _fetch(address: str, part: Path) -> None:
    """Complete `part`, resuming at its end if the server still has the same file."""
    tag_file = Path(f"{part}.tag")
    done = part.stat().st_size if part.is_file() and tag_file.is_file() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "regionclip"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", tag_file.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # `part` is not a prefix of the server's file
            raise
        _forget(part)
        response = urllib.request.urlopen(request.full_url, timeout=TIMEOUT)
    with response:
        resumed = response.status == 206
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        with part.open("ab" if resumed else "wb") as file:
            # Without an ETag it is unknown whether the rest belongs to the same file.
            if tag and not tag.startswith("W/"):
                tag_file.write_text(tag)
            else:
                tag_file.unlink(missing_ok=True)
            _copy(response, file, done if resumed else 0)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, done: int) -> None:
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    name = Path(response.url).name
    with progress_bar(
        total=total, unit="B", description=name, initial=done, unit_scale=True, unit_divisor=1024
    ) as progress:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
    if total is not None and file.tell() != total:
        raise http.client.IncompleteRead(b"", total - file.tell())


def _fetch_from_hub(address: str, part: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, repository, *path = address.removeprefix(HUB).split("/")
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=".hub-") as folder:
        try:
            fetched = hf_hub_download(f"{owner}/{repository}", "/".join(path), cache_dir=None, local_dir=folder)
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            fix = "correct owner, repository and path; private ones need a token (HF_TOKEN)"
            raise user_error(address, "a file on the hub", " ".join(str(error).split())[:200], fix) from error
        shutil.move(fetched, part)


def _forget(part: Path) -> None:
    for path in (part, Path(f"{part}.tag")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
