"""From a YAML file and command-line overrides to a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from regionclip.config.keys import get_cfg
from regionclip.errors import user_error
from regionclip.files import resolve_path


def load_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Return the config of a YAML file (with its `_BASE_` files) changed by `KEY VALUE` pairs.

    Files that the YAML names (MODEL.CLIP.ARCHITECTURE, OFFLINE_RPN_CONFIG) may lie beside it.

    Args:
        config_file: path, relative to the working directory or the repository; empty for defaults.
        overrides: keys and values in turn, as given at the end of a command line.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, or a value has the wrong type.
    """
    cfg = get_cfg()
    # Branch zero-shot gives a word where main gives True; yacs takes either in the place of None.
    cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER = None
    if config_file:
        path = resolve_path(config_file)
        if not path.is_file():
            raise user_error(config_file, "a YAML config file", "no such file", "choose one from configs/")
        try:
            cfg.merge_from_file(str(path), allow_unsafe=False)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise user_error(config_file, "readable YAML", reason, "correct the file") from error
        except (KeyError, ValueError, AssertionError, AttributeError, TypeError, OSError, RecursionError) as error:
            fix = "compare it with docs/config.md and the files in configs/"
            raise user_error(config_file, "known keys with values of their type", _reason(error), fix) from error
        _find_neighbours(cfg, path.parent)
    try:
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise user_error(
            f"overrides {' '.join(overrides)}",
            "pairs of a known key and a value of its type",
            _reason(error),
            "write KEY VALUE KEY VALUE ...; docs/config.md lists the keys",
        ) from error
    cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER = cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER or False
    return cfg


def _find_neighbours(cfg: CfgNode, folder: Path) -> None:
    """Complete the names of files that lie beside the config: a folder with all of them can be moved."""
    for key in ("ARCHITECTURE", "TEACHER_ARCHITECTURE", "OFFLINE_RPN_CONFIG"):
        name = cfg.MODEL.CLIP[key]
        if name and (folder / name).is_file():
            cfg.MODEL.CLIP[key] = str(folder / name)


def _reason(error: Exception) -> str:
    # A KeyError would print its message in quotes.
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
