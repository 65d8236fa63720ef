"""Commands that are tools under another name, and the check of the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from regionclip.cli import own_data
from regionclip.console import streams_that_may_close

FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Everything after the command goes to the tool as it is, `--help` too."""


def evaluate(context: typer.Context) -> None:
    """Evaluate a detector: on your own data with --data, else as tools/train_net.py --eval-only."""
    if own_data.is_asked(context.args):
        own_data.start(own_data.eval_app, "regionclip eval", context.args)
    from regionclip.cli.train_net import main

    main(["--eval-only", *context.args], "regionclip eval")


def train(context: typer.Context) -> None:
    """Train a detector: on your own data with --data, else as tools/train_net.py."""
    if own_data.is_asked(context.args):
        own_data.start(own_data.train_app, "regionclip train", context.args)
    from regionclip.cli.train_net import main

    main(context.args, "regionclip train")


def features(context: typer.Context) -> None:
    """Save region embeddings: tools/extract_region_features.py with the same options and KEY VALUE pairs."""
    from regionclip.cli.extract_region_features import main

    main(context.args, "regionclip features")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Look over the installation; what is wrong comes with its fix."""
    from regionclip.doctor import main

    with streams_that_may_close():
        code = main(as_json=as_json)
    raise typer.Exit(code)
