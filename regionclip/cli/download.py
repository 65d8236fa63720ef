"""`regionclip download`: list, download and verify published files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from regionclip.cli import options as shared


def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="Detectors or files of the list; without, the list is printed.")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help="Mirror of pretrained_ckpt/: https://..., hf://owner/repo.")
    ] = "",
    as_json: shared.AsJson = False,
) -> None:
    """Fetch published files into pretrained_ckpt/, and check those that are there.

    An interrupted download goes on where it stopped. Examples:

    regionclip download

    regionclip download clip/RN50.pt

    regionclip download regionclip_pretrained-cc_rn50 --from hf://owner/repository
    """
    from regionclip.engine.command import log_to_console, run_command

    def run() -> int:
        from tabulate import tabulate

        from regionclip.engine.command import BAD_INPUT, DONE
        from regionclip.errors import UserError, user_error
        from regionclip.hub.zoo import FILES, MODELS, check, fetch

        unknown = [name for name in names or [] if name not in MODELS and name not in FILES]
        if unknown:
            raise user_error(unknown[0], "a detector or file of the list", "neither", "run regionclip download")
        paths = [path for name in names or FILES for path in (MODELS[name].all_files if name in MODELS else (name,))]
        rows, problems = [], 0
        for path in dict.fromkeys(paths):
            file = FILES[path]
            try:
                if names:
                    fetch(file, source)
                state = check(file) if file.place.is_file() else "not there"
            except UserError as error:
                problems += 1
                state = "wrong" if file.place.is_file() else "not there"
                print(f"error: {error}", file=sys.stderr)
            rows.append([path, state, "OpenAI" if file.url else "Google Drive, by hand"])
        print(tabulate(rows, headers=["file", "state", "from"]))
        if not names:
            print(f"\ndetectors: {', '.join(MODELS)}")
        print(f"Done: {len(rows)} files, {problems} with problems; in pretrained_ckpt/")
        if as_json:
            shared.print_json({"files": [{"path": path, "state": state} for path, state, _ in rows]})
        return BAD_INPUT if problems else DONE

    log_to_console()
    run_command(run)
