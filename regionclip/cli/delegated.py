"""Commands that are tools under another name, and the look over the installation."""

from __future__ import annotations

import runpy
import sys
from typing import Annotated

import typer

from regionclip.console import streams_that_may_close
from regionclip.files import REPOSITORY

FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Everything after the command goes to the tool as it is, `--help` too."""


def run_tool(tool: str, arguments: list[str]) -> None:
    """Run a script of `tools/` as if it had been called with these arguments."""
    from regionclip.engine.command import report_user_errors
    from regionclip.errors import user_error

    script = REPOSITORY / "tools" / tool

    def require() -> None:
        if not script.is_file():
            fix = "install with pip install -e from a clone of the repository, which also has the configs"
            raise user_error(f"tools/{tool}", "the repository", "no such file", fix)

    report_user_errors(require)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def evaluate(context: typer.Context) -> None:
    """Evaluate a detector: tools/train_net.py --eval-only with the same options and KEY VALUE pairs."""
    run_tool("train_net.py", ["--eval-only", *context.args])


def train(context: typer.Context) -> None:
    """Train a detector: tools/train_net.py with the same options and KEY VALUE pairs."""
    run_tool("train_net.py", context.args)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Look over the installation; what is wrong comes with its fix."""
    from regionclip.doctor import main

    with streams_that_may_close():
        code = main(as_json=as_json)
    raise typer.Exit(code)
