"""Fingerprints: hashes of everything that decides a result, so that a run is resumed by its own command only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

import regionclip
from regionclip.config.keys import all_keys, get_value
from regionclip.config.loading import load_config
from regionclip.config.resolve import find_weights

CONFIG_SUFFIXES = (".yaml", ".yml")


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a SHA-256 hash of values with the same text in every process, in hexadecimal digits."""
    return hashlib.sha256(repr([regionclip.__version__, *parts]).encode(errors="surrogateescape")).hexdigest()


def file_state(path: Path) -> tuple[int, ...]:
    """Return size and modification time of a file; empty for none, which is reported when it is read.

    A folder of region features has those of its index and manifest.
    """
    if path.is_dir():
        return tuple(part for name in ("index.json", "features.json") for part in file_state(path / name))
    if not path.is_file():
        return ()
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def config_texts(cfg: CfgNode) -> list[str]:
    """Return the values of a config, and of the configs that it names."""
    return [cfg.dump(), *(load_config(name).dump() for name in _file_names(cfg) if name.endswith(CONFIG_SUFFIXES))]


def config_parts(cfg: CfgNode) -> list[Any]:
    """Return the values of a config and of those that it names, and the state of every file that it names.

    A key says of itself that it names a file (`Key.is_file`), so a new one is noticed here.
    """
    states = [(name, file_state(find_weights(name))) for name in (cfg.MODEL.WEIGHTS, *_file_names(cfg)) if name]
    return [*config_texts(cfg), states]


def _file_names(cfg: CfgNode) -> list[str]:
    values = (get_value(cfg, key.name) for key in all_keys() if key.is_file)
    return [value for value in values if isinstance(value, str) and value]


def hash_tensors(states: Iterable[Mapping[str, Any]]) -> str:
    """Return a short hash of the keys and values of state dicts."""
    digest = hashlib.sha256()
    for state in states:
        for key, value in state.items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
