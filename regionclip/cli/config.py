"""`regionclip config`: the configuration keys, one or all."""

from __future__ import annotations

from typing import Annotated

import typer


def config(
    key: Annotated[str, typer.Argument(help="a key, a node such as MODEL.CLIP, or the last part of a key")] = "",
) -> None:
    """Print what a configuration key means, its default and its allowed values; without a key, the whole reference.

    Example: regionclip config MODEL.CLIP.CLSS_TEMP
    """
    from regionclip.config.keys import all_keys
    from regionclip.config.reference import config_page, describe, find_keys, nearest_names
    from regionclip.engine.command import DONE, run_command
    from regionclip.errors import user_error

    def run() -> int:
        found = find_keys(key) if key else []
        if key and not found:
            near = nearest_names(key, [other.name for other in all_keys()])
            fix = f"try {', '.join(near)}" if near else "print all keys with regionclip config"
            raise user_error(f"configuration key {key}", "a key of this package", "none of that name", fix)
        print("\n\n".join(map(describe, found)) if key else config_page())
        return DONE

    run_command(run)
