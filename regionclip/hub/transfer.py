"""One HTTP transfer into a partial file, resumed where the server still has the same file."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import urlsplit

from regionclip.errors import user_error
from regionclip.hub.addresses import Location

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without data after which a connection counts as broken."""

LINKED = "linked:"
"""Before the tag of a file that the hub stores on another host: the tag there differs from visit to visit."""

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class Progress(Protocol):
    """Counts bytes over all files."""

    def expect(self, size: int) -> None:
        """Add to the total."""
        ...

    def advance(self, size: int) -> None:
        """Add to what is done; less than 0 if a part is thrown away."""
        ...


class WebPageError(Exception):
    """The server sent a page instead of the file."""


@dataclass
class Received:
    """What the server said of a file."""

    sha256: str = ""
    """Of the file as the hub stores it; empty if the server names none."""


@dataclass
class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeps credentials from other hosts, and reads what the hub says of the file on the way."""

    headers: Mapping[str, str]
    linked: str = field(default="", init=False)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.linked = self.linked or (headers.get("X-Linked-Etag") or "").removeprefix("W/").strip('"')
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(request.full_url)[:2] != urlsplit(req.full_url)[:2]:  # scheme and host
            for name in self.headers:
                request.remove_header(name.capitalize())
        return request


def transfer(location: Location, part: Path, progress: Progress) -> Received:
    """Complete a partial file, and return what the server said of it.

    Raises:
        urllib.error.HTTPError: an error of the server.
        OSError, http.client.HTTPException: a connection that broke.
        WebPageError: a page instead of a file.
        UserError: no space left.
    """
    tag_file = Path(f"{part}.tag")
    stored = tag_file.read_text() if part.is_file() and tag_file.is_file() else ""
    done = part.stat().st_size if stored else 0
    response, linked = _open(location, done, stored)
    if done and not _continues(response, done, stored, linked):
        response.close()
        forget(part)
        done = 0
        response, linked = _open(location, 0, "")
    with response:
        _receive(response, linked, part, tag_file, done, progress)
    return Received(linked if _SHA256.match(linked) else "")


def seconds_to_wait(error: urllib.error.HTTPError, attempt: int) -> float:
    """Return how long the server asks to wait (Retry-After), else a time that grows with the attempts."""
    wanted = error.headers.get("Retry-After", "") if error.headers else ""
    if wanted.strip().isdigit():
        return float(wanted)
    if date := email.utils.parsedate_tz(wanted):
        return max(email.utils.mktime_tz(date) - time.time(), 0.0)
    return 0.5 * 2.0**attempt


def forget(part: Path) -> None:
    """Remove a partial file and its tag."""
    for path in (part, Path(f"{part}.tag")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _open(location: Location, done: int, stored: str) -> tuple[http.client.HTTPResponse, str]:
    request = urllib.request.Request(location.url, headers={"User-Agent": "regionclip", **location.headers})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if not stored.startswith(LINKED):
            request.add_header("If-Range", stored)
    redirects = _Redirects(location.headers)
    opener = urllib.request.build_opener(redirects)  # with the proxies of the environment
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        # The partial file is no beginning of the server's.
        return _open(location, 0, "")
    linked = redirects.linked or (response.headers.get("X-Linked-Etag") or "").strip('"')
    return cast(http.client.HTTPResponse, response), linked


def _continues(response: http.client.HTTPResponse, done: int, stored: str, linked: str) -> bool:
    """Return whether a response can be used: the whole file, or what follows the first `done` bytes of the same."""
    if getattr(response, "status", 200) != 206:
        return True
    if stored.startswith(LINKED) and stored != LINKED + linked:
        return False
    return (response.headers.get("Content-Range") or "").replace(" ", "").startswith(f"bytes{done}-")


def _receive(
    response: http.client.HTTPResponse, linked: str, part: Path, tag_file: Path, done: int, progress: Progress
) -> None:
    resumed = getattr(response, "status", 200) == 206 and done > 0
    if not resumed and "text/html" in (response.headers.get("Content-Type") or ""):
        raise WebPageError
    length = response.headers.get("Content-Length")
    total = (done if resumed else 0) + int(length) if length and length.isdigit() else None
    _require_space(part, int(length) if total is not None and length else 0)
    tag = LINKED + linked if linked else response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    with part.open("ab" if resumed else "wb") as file:
        # Without a tag it is unknown whether the rest belongs to the same file.
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag)
        else:
            tag_file.unlink(missing_ok=True)
        progress.expect(total or 0)
        progress.advance(done if resumed else 0)
        try:
            _copy(response, file, progress)
            if total is not None and file.tell() != total:
                raise http.client.IncompleteRead(b"", total - file.tell())
        except Exception:
            progress.advance(-file.tell())  # the next attempt counts what is there
            progress.expect(-(total or 0))
            raise


def _copy(response: IO[bytes], file: IO[bytes], progress: Progress) -> None:
    first = file.tell() == 0
    while chunk := response.read(CHUNK):
        if first and chunk.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
            raise WebPageError
        first = False
        file.write(chunk)
        progress.advance(len(chunk))


def _require_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        expected, actual = f"{missing / 1e6:.0f} MB of free space in {part.parent}", f"{free / 1e6:.0f} MB"
        raise user_error(str(part.with_suffix("")), expected, actual, "make room, or set REGIONCLIP_CACHE")
