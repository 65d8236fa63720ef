"""From a YAML file and command-line overrides to a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from regionclip.config.keys import all_keys, get_cfg, get_value, known_names
from regionclip.config.reference import nearest_names
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
    # Branch zero-shot gives a word where main gives True; yacs takes either where the default is None.
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
            fix = _nearest(error) or "compare it with docs/config.md and the files in configs/"
            raise user_error(config_file, "known keys with values of their type", _reason(error), fix) from error
        _find_neighbors(cfg, path.parent)
    merge_overrides(cfg, overrides)
    cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER = cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER or False
    return cfg


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Change a config by `KEY VALUE` pairs; raises `UserError` for an unknown key or a value of another type."""
    try:
        cfg.merge_from_list(_with_floats(cfg, overrides))
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise user_error(
            f"overrides {' '.join(overrides)}",
            "pairs of a known key and a value of its type",
            _reason(error),
            _nearest(error) or "write KEY VALUE KEY VALUE ...; docs/config.md lists the keys",
        ) from error


def _with_floats(cfg: CfgNode, overrides: Sequence[str]) -> list[str]:
    """Return overrides in which whole numbers of float keys are floats: yacs would refuse `KEY 1`."""
    names, result = set(known_names(cfg)), list(overrides)
    for number in range(0, len(result) - 1, 2):
        key, value = result[number : number + 2]
        if key in names and isinstance(get_value(cfg, key), float) and re.fullmatch(r"[+-]?\d+", str(value)):
            result[number + 1] = f"{value}.0"
    return result


def _find_neighbors(cfg: CfgNode, folder: Path) -> None:
    """Complete the names of files that lie next to the config: a folder with all of them can be moved."""
    for key in all_keys():
        name = get_value(cfg, key.name) if key.is_file else None
        if isinstance(name, str) and name and (folder / name).is_file():
            cfg.merge_from_list([key.name, str(folder / name)])


def _nearest(error: Exception) -> str:
    """Return the fix for a key that does not exist: the names that it can mean; empty for another error."""
    found = re.search(r"(?:Non-existent|non-existent) (?:config )?key: ?'?([\w.]+)", _reason(error))
    if not found:
        return ""
    near = nearest_names(found[1], known_names(get_cfg()))
    return f"write {' or '.join(near)}; docs/config.md lists the keys" if near else ""


def _reason(error: Exception) -> str:
    # A KeyError would print its message in quotes.
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
