"""Published files on this machine: found, or fetched from the first source that has them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from regionclip.console import can_ask, confirmed
from regionclip.errors import Problem, UserError, user_error
from regionclip.hub.content import check_content
from regionclip.hub.downloads import ByteCount, Expected, download, is_offline
from regionclip.hub.drive import DRIVE, has_gdown, web_page
from regionclip.hub.lock_file import pin
from regionclip.hub.transfer import Progress
from regionclip.hub.zoo import FILES, text_files
from regionclip.published import FOLDER, PublishedFile

ASK_ABOVE = 50
"""Megabytes above which a download is confirmed."""

AT_ONCE = 4
"""Files that are fetched at the same time."""


def place_of(file: PublishedFile) -> Path | None:
    """Return the path of a file that is on this machine, or of the one that serves instead; None if neither is."""
    paths = (candidate.place for candidate in _candidates(file))
    return next((path for path in paths if path.is_file()), None)


def fetch(file: PublishedFile, source: str = "", progress: Progress | None = None) -> Path:
    """Return the path of a published file, downloaded if missing.

    Args:
        file: of `FILES`.
        source: a mirror of the published sub-folders on the web or on the hub; empty takes the publishers' sources.
        progress: counts bytes; None shows a bar of this file.

    Raises:
        UserError: no source has the file, with what each of them answered.
    """
    if (present := place_of(file)) is not None:
        return present
    answers = []
    for candidate in () if is_offline() else _candidates(file):
        mirrored = (f"{source.rstrip('/')}/{candidate.path}",) if source else candidate.sources
        for address in mirrored:
            try:
                return _fetch_from(candidate, address, progress)
            except UserError as error:
                answers += [f"{address}: {problem.actual} instead of {problem.expected}" for problem in error.problems]
    page = next((web_page(address) for address in file.sources if address.startswith(DRIVE)), "")
    by_hand = f"download {Path(file.path).name} from {page or file.sources[0]} to {file.target}"
    if is_offline():
        fix = f"unset REGIONCLIP_OFFLINE and HF_HUB_OFFLINE, or {by_hand}"
        raise user_error(f"{FOLDER}/{file.path}", "the published file, for downloads are switched off", "none", fix)
    install = 'pip install "regionclip[drive]", ' if page and not has_gdown() else ""
    fix = f"{install}{by_hand}, or name a mirror with `regionclip download --from ADDRESS`"
    raise user_error(f"{FOLDER}/{file.path}", "the published file", "; ".join(answers), fix)


def text_files_to_fetch(clip: str) -> list[PublishedFile]:
    """Return the file that `text_weights_of` would download: none if one with the text encoder is present."""
    known = text_files(clip)
    return [] if any(file.place.is_file() for file in known) else known[-1:]


def text_weights_of(clip: str) -> str:
    """Return a published checkpoint with the text encoder of a CLIP size, downloaded if none is present.

    Raises:
        UserError: none is published, or it cannot be downloaded.
    """
    known = text_files(clip)
    here = (file.place for file in known if file.place.is_file())
    return str(next(here, None) or fetch(known[-1]))


def fetch_all(files: Sequence[PublishedFile], source: str = "") -> list[UserError]:
    """Fetch missing files, several at once behind one progress bar, and return the errors of those that failed."""
    missing = [file for file in files if place_of(file) is None]
    if not missing:
        return []
    total = sum(file.megabytes for file in missing) * 10**6 if all(file.megabytes for file in missing) else 0
    bar = ByteCount(f"{len(missing)} files" if len(missing) > 1 else Path(missing[0].path).name, total)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes = list(pool.map(partial(_fetch_or_error, source=source, progress=bar), missing))
    finally:
        bar.close()
    return [outcome for outcome in outcomes if outcome is not None]


def require_consent(files: Sequence[PublishedFile], *, agreed: bool) -> None:
    """Ask before a download of more than `ASK_ABOVE` megabytes, with size, licenses and folder.

    Args:
        files: published files; those on this machine are left out.
        agreed: `--yes`: do not ask.

    Raises:
        UserError: no terminal to ask on, or the answer is no.
    """
    missing = [file for file in files if place_of(file) is None]
    size = sum(file.megabytes for file in missing)
    if agreed or size <= ASK_ABOVE or is_offline():
        return
    what = download_summary(missing)
    if not can_ask():
        raise user_error("download", "--yes, for there is no terminal to ask on", what, "add --yes")
    if not confirmed(f"{what}. Download?"):
        raise user_error("download", "consent", "none", "name another detector, or put the files there by hand")


def download_summary(files: Sequence[PublishedFile]) -> str:
    """Return number, size, licenses and folder of files in a phrase."""
    licenses = ", ".join(sorted({file.license for file in files}))
    count = f"{len(files)} files" if len(files) > 1 else Path(files[0].path).name
    folder = files[0].target.parents[files[0].path.count("/")]
    return f"{count}, about {sum(file.megabytes for file in files)} MB ({licenses}), to {folder}"


def _candidates(file: PublishedFile) -> list[PublishedFile]:
    return [file, FILES[file.instead]] if file.instead else [file]


def _fetch_or_error(file: PublishedFile, source: str, progress: Progress) -> UserError | None:
    try:
        fetch(file, source, progress)
    except UserError as error:
        return error
    return None


def _fetch_from(file: PublishedFile, address: str, progress: Progress | None) -> Path:
    def check(path: Path) -> None:
        check_content(file, path)
        if not file.sha256:
            pin(file, path, address)

    expected = Expected(file.sha256, file.md5_prefix, check)
    return download(address, file.target, expected=expected, progress=progress)


def one_error(errors: Sequence[UserError]) -> UserError:
    """Return the problems of several errors as one."""
    problems: list[Problem] = [problem for error in errors for problem in error.problems]
    return UserError(problems)
