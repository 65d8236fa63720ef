"""Class embeddings from disk: one row per class, in the joint image-text space."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from regionclip.errors import user_error
from regionclip.files import file_version, is_pickle, resolve_path


def load_class_embeddings(
    path: str | Path, *, rows: int | None = None, dim: int | None = None, key: str = ""
) -> Tensor:
    """Read class embeddings: a bare tensor, as upstream stores it, or a safetensors file.

    Args:
        path: `.pth`/`.pt` with one tensor, or `.safetensors` with the tensor `embeddings`.
        rows: expected number of classes, None for any.
        dim: expected embedding width D, None for any.
        key: config key of the file, for the error message.

    Returns:
        float32 [rows, dim], as stored: not normalized.

    Raises:
        UserError: missing, unreadable or unsafe file, wrong shape, or non-finite values.
    """
    what = f"{key} {path}".strip()
    tensor = _read_once(resolve_path(path), what)
    expected = f"a float tensor [{'K' if rows is None else rows}, {'D' if dim is None else dim}]"
    fits = tensor.ndim == 2 and rows in (None, tensor.shape[0]) and dim in (None, tensor.shape[1])
    if not fits or not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        fix = "use embeddings of the same CLIP model and class list, or correct NUM_CLASSES / TEXT_EMB_DIM"
        raise user_error(what, expected, f"{kind} {list(tensor.shape)}", fix)
    if not torch.isfinite(tensor).all():
        raise user_error(what, "finite numbers", "NaN or infinity", "extract the embeddings again")
    return tensor.float()


def load_concepts(path: str | Path, dim: int, key: str, *, rows: int | None = None) -> Tensor:
    """Read concept embeddings float32 [C, dim], with concept names if the file is safetensors.

    Raises:
        UserError: as for `load_class_embeddings`, or a concept has several rows.
    """
    table = load_class_embeddings(path, rows=rows, dim=dim, key=key)
    empty = (table.norm(dim=1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise user_error(
            f"{key} {path}", "a direction for each concept", f"zeros in row {empty[0]}", "build the pool again"
        )
    names = read_names(path)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        fix = "remove the second of each from the names, and build the pool again"
        raise user_error(f"{key} {path}", "each concept once", f"twice: {', '.join(twice[:5])}", fix)
    if names and len(names) != len(table):
        fix = "build the pool again with tools/build_concept_pool.py"
        raise user_error(f"{key} {path}", f"a name for each of {len(table)} rows", f"{len(names)} names", fix)
    return table


def read_names(path: str | Path) -> list[str]:
    """Return the names stored in a safetensors file of embeddings; empty for other files."""
    place = resolve_path(path)
    if place.suffix != ".safetensors":
        return []
    with safe_open(place, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("names", "[]"))


def _read_once(path: Path, what: str) -> Tensor:
    """Return the tensor of a file, which the checks of a config and the model that is built ask for in turn."""
    if not path.is_file():
        return _read_tensor(path, what)
    return _read_version(path, what, file_version(path)).clone()


@lru_cache(maxsize=4)
def _read_version(path: Path, what: str, state: str) -> Tensor:
    return _read_tensor(path, what)


def _read_tensor(path: Path, what: str) -> Tensor:
    if not path.is_file():
        raise user_error(what, "an embedding file", "no such file", "see docs/MODEL_ZOO.md for where files come from")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)["embeddings"]
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not (isinstance(error, pickle.UnpicklingError) and is_pickle(path)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            fix = "download or extract the file again"
            raise user_error(what, "a tensor file", f"unreadable ({reason})", fix) from error
        fix = "load it where you trust it and save the bare tensor with torch.save"
        raise user_error(what, "a plain tensor", "a pickle that could run code", fix) from error
    if not isinstance(content, Tensor):
        raise user_error(what, "a bare tensor [K, D]", type(content).__name__, "save only the tensor with torch.save")
    return content
