"""`regionclip download`: list, download and verify published files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip.published import PublishedFile


def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="Detectors or files of the list; without, the list is printed.")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help="Mirror of pretrained_ckpt/: https://..., hf://owner/repo.")
    ] = "",
    yes: shared.Yes = False,
    as_json: shared.AsJson = False,
) -> None:
    """Fetch published files into pretrained_ckpt/, and check those that are there.

    Every source of a file is tried in turn, and an interrupted download goes on where it stopped. Examples:

    regionclip download

    regionclip download clip_rn50 --yes

    regionclip download regionclip_pretrained-cc_rn50 --from hf://owner/repository
    """
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(names or [], source, agreed=yes, as_json=as_json))


def run(names: list[str], source: str, *, agreed: bool, as_json: bool) -> int:
    """Run the command, and return the exit code."""
    from tabulate import tabulate

    from regionclip.engine.command import BAD_INPUT, DONE
    from regionclip.errors import user_error
    from regionclip.hub.fetching import fetch_all, require_consent
    from regionclip.hub.zoo import FILES, MODELS

    unknown = [name for name in names if name not in MODELS and name not in FILES]
    if unknown:
        raise user_error(unknown[0], "a detector or file of the list", "neither", "run regionclip download")
    paths = [path for name in names or FILES for path in (MODELS[name].all_files if name in MODELS else (name,))]
    files = [FILES[path] for path in dict.fromkeys(paths)]
    errors = []
    if names:
        require_consent(files, agreed=agreed)
        errors = fetch_all(files, source)
    rows = [_row(file) for file in files]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(tabulate([row.values() for row in rows], headers=["file", "state", "from"]))
    if not names:
        print(f"\ndetectors: {', '.join(MODELS)}")
    problems = len(errors) + sum(row["state"] == "wrong" for row in rows)
    print(f"Done: {len(rows)} files, {problems} with problems; in pretrained_ckpt/")
    if as_json:
        shared.print_json({"files": [{"path": row["path"], "state": row["state"]} for row in rows]})
    return BAD_INPUT if problems else DONE


def _row(file: PublishedFile) -> dict[str, Any]:
    """Return path, state and first source of a file; what is wrong with it is printed."""
    from regionclip.errors import UserError
    from regionclip.hub.content import check
    from regionclip.hub.fetching import place_of
    from regionclip.hub.lock_file import pinned_hash

    state = "not there"
    if file.place.is_file():
        try:
            state = check(file, pinned_hash(file))
        except UserError as error:
            state = "wrong"
            print(f"error: {error}", file=sys.stderr)
    elif (other := place_of(file)) is not None:
        state = f"not there, but {other.name}"
    return {"path": file.path, "state": state, "from": _source_name(file)}


def _source_name(file: PublishedFile) -> str:
    scheme, _, rest = file.sources[0].partition("://")
    return {"hf": "Hugging Face", "drive": "Google Drive"}.get(scheme, rest.split("/")[0])
