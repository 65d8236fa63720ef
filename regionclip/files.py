"""Files: where a relative path points, and writing that never leaves half a file behind."""

from __future__ import annotations

import codecs
import json
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from regionclip.errors import system_error, user_error

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),  # before UTF-16, whose mark one begins with
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)

_UMASK_LOCK = threading.Lock()
_PACKAGE = Path(__file__).resolve().parent
_IS_CLONE = (_PACKAGE.parent / "setup.py").is_file()

REPOSITORY = _PACKAGE.parent if _IS_CLONE else _PACKAGE / "shipped"
"""The folder of `configs/`, `datasets/` and `pretrained_ckpt/`: the clone, or what a wheel carries of it."""


def cache_folder() -> Path:
    """Return the folder of caches: $REGIONCLIP_CACHE, else `regionclip` in the user's cache folder."""
    own = os.environ.get("REGIONCLIP_CACHE")
    if own:
        return Path(own)
    home = Path("~/.cache").expanduser() if _has_home() else Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME", home)) / "regionclip"


def _has_home() -> bool:
    # In a container the user may have neither HOME nor a name.
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def download_folder() -> Path:
    """Return the folder that holds `pretrained_ckpt/` for downloads: the clone, or for a wheel the caches."""
    return REPOSITORY if _IS_CLONE else cache_folder()


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` replaced by the home folder, unless a file has that name."""
    given = Path(path)
    try:
        return given if os.path.lexists(given) else given.expanduser()
    except RuntimeError:  # there is no such user: a name like any other
        return given


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """Return where `path` points: absolute, else relative to the working directory, the repository, or downloads.

    A path that exists in none of these places is returned relative to the working directory, so that an
    error message names the place where the user would look first.
    """
    given = expand_home(path)
    if given.is_absolute() or given.exists():
        return given
    places = [folder / given for folder in dict.fromkeys((REPOSITORY, download_folder()))]
    return next((place for place in places if place.exists()), given)


def make_folder(folder: str | os.PathLike[str], what: str) -> list[Path]:
    """Make a folder to write to, and return the folders that were missing, the innermost first.

    Args:
        folder: the folder.
        what: names it in messages.

    Raises:
        UserError: nothing can be written to it.
    """
    place = Path(folder)
    missing = [path for path in (place, *place.parents) if not path.exists()]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        fix = "choose another folder, or make it writable"
        raise user_error(what, "a folder to write to", str(error.strerror), fix) from error
    return missing


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BufferedRandom]:
    """Yield a binary file, to write and read, that becomes `path` only when the block ends without an exception."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A long name with more around it would be too long.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as any file the user creates.
        Path(temporary).chmod(0o666 & ~_current_umask())
        Path(temporary).replace(target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        refused = system_error(error)
        if refused is not None and refused.filename in (None, temporary):  # a write knows no name
            raise OSError(refused.errno, refused.strerror, str(target)) from error
        raise


def write_json(path: str | os.PathLike[str], content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write `content` as JSON to `path`, atomically; `default` converts types that JSON lacks."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, default=default).encode())


def read_json_file(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the JSON object in a file; None without a file, empty when it holds anything else."""
    if not Path(path).is_file():
        return None
    try:
        content = json.loads(Path(path).read_bytes())  # of bytes it takes the byte order mark away
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Return the text of a file in UTF-8, or in the encoding that its byte order mark tells, without the mark.

    Args:
        path: file, relative to the working directory or the repository.
        what: what the text should hold, for messages.

    Raises:
        UserError: missing file, or no such text.
    """
    place = resolve_path(path)
    if not place.is_file():
        raise user_error(str(path), f"a text file of {what}", "no such file", "correct the path")
    content = place.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise user_error(str(path), "text in UTF-8", str(error), "save it as UTF-8") from error


def file_version(file: Path) -> str:
    """Return a string that changes when the file is written, replaced or moved."""
    state = file.stat()
    return f"{file.resolve()} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def read_lines(path: str | os.PathLike[str], what: str) -> list[str]:
    """Return the lines of a text file that are not blank, without space around them.

    Args:
        path: file, relative to the working directory or the repository.
        what: what the lines should be, for messages.

    Raises:
        UserError: missing file, no text, or nothing in it.
    """
    lines = [line.strip() for line in read_text(path, what).splitlines()]
    if not any(lines):
        raise user_error(str(path), f"at least one of the {what}", "none", "write one on each line")
    return [line for line in lines if line]


def existing_file(path: str) -> Path | None:
    """Return the file that a text names; None when there is none, however long or odd the text."""
    try:
        place = resolve_path(path)
        return place if place.is_file() else None
    except (OSError, ValueError):
        return None


def is_pickle(path: Path) -> bool:
    """Return whether a file is a pickle or a torch archive: what torch refuses of these could run code."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _current_umask() -> int:
    # The mask can only be read by setting it, and another thread must not read what this one sets.
    with _UMASK_LOCK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
