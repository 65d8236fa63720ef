"""Downloads: atomic, resumable, and verified."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from regionclip.errors import UserError, user_error
from regionclip.files import cache_folder
from regionclip.hub.addresses import HUB, locate
from regionclip.hub.drive import DRIVE, fetch_from_drive
from regionclip.hub.transfer import Progress, WebPageError, forget, seconds_to_wait, transfer
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)

TRIES = 5
"""Attempts per download when connections break or the server is busy."""

LONGEST_WAIT = 300.0
"""Seconds that a busy server may ask to wait."""

BUSY = (429, 500, 502, 503, 504)
"""HTTP errors that pass."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is there; empty if unknown."""

    sha256: str = ""
    md5_prefix: str = ""
    """First digits, as Detectron2's file names have them."""
    content: Callable[[Path], None] | None = None
    """Raises `UserError` for a file of another content."""

    def require(self, path: Path, what: str, fix: str) -> None:
        """Raise `UserError` unless a file is as expected; `what` and `fix` are for the message."""
        for name, wanted in (("sha256", self.sha256), ("md5", self.md5_prefix)):
            found = file_hash(path, name) if wanted else ""
            if not found.startswith(wanted):
                label = "SHA-256" if name == "sha256" else "MD5 that begins with"
                raise user_error(what, f"{label} {wanted}", found, fix)
        if self.content is not None:
            self.content(path)


class ByteCount:
    """A progress bar of bytes over all files of a download."""

    def __init__(self, description: str, total: int = 0) -> None:
        """Show a bar; a `total` of 0 grows with the files."""
        self._fixed = bool(total)
        self._bar = progress_bar(total=total, unit="B", description=description, unit_scale=True, unit_divisor=1024)

    def expect(self, size: int) -> None:
        """Add to the total, unless it was known."""
        if not self._fixed:
            self._bar.total += size

    def advance(self, size: int) -> None:
        """Add to what is done."""
        self._bar.update(size)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def is_offline() -> bool:
    """Return whether REGIONCLIP_OFFLINE or HF_HUB_OFFLINE disables downloads."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("REGIONCLIP_OFFLINE", "HF_HUB_OFFLINE"))


def download(
    address: str, target: Path, sha256: str = "", *, expected: Expected | None = None, progress: Progress | None = None
) -> Path:
    """Download a file unless it exists, and return its path.

    Partial downloads stay in `<target>.part` and are resumed by the next call. The target is created only when it is
    complete and as expected; the hub's own hash counts where none is given.

    Args:
        address: `http://`, `https://`, `file://`, `hf://[spaces/|datasets/]owner/repository[@revision]/path`,
            `drive://FILE_ID` or `drive://folders/FOLDER_ID/name`.
        target: file to write.
        sha256: of the whole file; empty if none is published.
        expected: what else is known of it.
        progress: counts bytes; None shows a bar of this file.

    Raises:
        UserError: offline, no such file, repeatedly broken connections, no space, or another file than expected.
    """
    wanted = expected or Expected(sha256)
    if target.is_file():
        wanted.require(target, str(target), "remove it and download it again")
        return target
    if is_offline():
        fix = f"unset REGIONCLIP_OFFLINE and HF_HUB_OFFLINE, or put the file there from {address}"
        raise user_error(str(target), "the file, for downloads are switched off", "no such file", fix)
    target.parent.mkdir(parents=True, exist_ok=True)
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with FileLock(locks / hashlib.sha256(str(part.resolve()).encode()).hexdigest()[:16]):
        if not target.is_file():
            _fetch_and_verify(address, target, part, wanted, progress)
            logger.info("Downloaded %s (%.0f MB) from %s", target, target.stat().st_size / 1e6, address)
    return target


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _fetch_and_verify(address: str, target: Path, part: Path, wanted: Expected, progress: Progress | None) -> None:
    bar = progress or ByteCount(target.name)
    try:
        if address.startswith(DRIVE):
            fetch_from_drive(address, part, bar)
            said = ""
        else:
            said = _fetch_with_retries(address, part, bar)
    finally:
        if isinstance(bar, ByteCount) and progress is None:
            bar.close()
    complete = target.with_name(f".{target.stem}.complete{target.suffix}")  # readers go by the suffix
    part.replace(complete)
    forget(part)
    try:
        fix = "try again, or report it: the file on the server is another one"
        Expected(said).require(complete, address, fix)
        wanted.require(complete, address, fix)
    except UserError:
        complete.unlink()
        raise
    complete.replace(target)


def _fetch_with_retries(address: str, part: Path, progress: Progress) -> str:
    """Fetch a file, and return the SHA-256 that the hub says it has."""
    location, fix = locate(address), "correct the address, or put the file in place by hand (docs/MODEL_ZOO.md)"
    if address.startswith(HUB):
        fix = "correct owner, repository and path; private ones need a token (HF_TOKEN)"
    for attempt in range(TRIES):
        last = attempt == TRIES - 1
        try:
            return transfer(location, part, progress).sha256
        except urllib.error.HTTPError as error:
            wait = seconds_to_wait(error, attempt)
            if error.code not in BUSY or last or wait > LONGEST_WAIT:
                waiting = f", which asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
                actual = f"HTTP {error.code} {error.reason}{waiting}"
                raise user_error(address, "a file", actual, fix) from error
            if wait > 1:
                logger.info("%s is busy (HTTP %d): waiting %.0f s", location.url, error.code, wait)
            time.sleep(wait)
        except WebPageError:
            forget(part)
            raise user_error(address, "a file", "a web page", fix) from None
        except UserError:
            raise
        except ValueError as error:
            expected = "https://..., file://..., hf://... or drive://..."
            raise user_error(address, expected, str(error), "correct the address") from error
        except (OSError, http.client.HTTPException) as error:
            if last:
                reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
                fix = "check the connection and run it again: it goes on where it stopped"
                raise user_error(address, "a file", f"no connection that lasts ({reason})", fix) from error
    raise AssertionError("every attempt returns or raises")
