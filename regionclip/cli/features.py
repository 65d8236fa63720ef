"""`regionclip features`: the embeddings of regions, for a folder of pictures."""

from __future__ import annotations

import typer

from regionclip.cli.delegated import run_tool


def features(context: typer.Context) -> None:
    """Save region embeddings: tools/extract_region_features.py with the same options and KEY VALUE pairs."""
    run_tool("extract_region_features.py", context.args)
