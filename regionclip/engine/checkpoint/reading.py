"""Reading of checkpoint files of any published format, without running code from them."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from regionclip.config.resolve import find_weights
from regionclip.errors import UserError, user_error
from regionclip.files import is_pickle
from regionclip.fingerprints import hash_tensors

STATE_KEYS = ("model_ema", "model", "state_dict", "model_state")
"""Keys under which trainers store the state dict: the average of DETR's family; Detectron2, open_clip, pycls."""

_SAFE_CLASSES = (argparse.Namespace,)
"""Classes that hold data only: command lines, which the checkpoints of DETR's family include."""

_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_SAFE_PICKLE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


@dataclass
class Checkpoint:
    """Content of a checkpoint file."""

    path: str
    state: dict[str, Tensor]
    """Parameters and buffers by key, on the CPU, without the prefixes of wrapper modules."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Everything other than the state dict: optimizer, iteration, ..."""


def read_checkpoint(path: str, *, trust_pickle: bool = False, averaged: bool = True) -> Checkpoint:
    """Read a `.pth`, `.pt`, `.safetensors`, TorchScript archive, or Detectron2 `.pkl` file.

    Args:
        path: file, relative to the working directory or the repository, or a URL that
            Detectron2's path manager resolves; `.pth` may be omitted.
        trust_pickle: allow the file to run code while it is read (`--trust-pickle`).
        averaged: of a run with MODEL_EMA take the averaged weights, which its evaluations used.

    Raises:
        UserError: missing, truncated or unreadable file, no weights in it, or a pickle that could
            run code.
    """
    try:
        local = Path(PathManager.get_local_path(path)) if "://" in path else find_weights(path)
        if not local.is_file():
            fix = "see docs/MODEL_ZOO.md for where files come from"
            raise user_error(path, "a checkpoint file", "no such file", fix)
        return _split(path, _read_content(local, trust_pickle), averaged=averaged)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise user_error(
            path, "a readable checkpoint", f"{type(error).__name__}: {reason}", "download or copy the file again"
        ) from error


def backbone_hash(path: str, *, trust_pickle: bool = False) -> str:
    """Return a hash of the backbone's weights in a checkpoint, which packing keeps; empty if it has none.

    Errors are those of `read_checkpoint`.
    """
    state = read_checkpoint(path, trust_pickle=trust_pickle).state
    backbone = {key: value for key, value in sorted(state.items()) if key.startswith("backbone.")}
    return hash_tensors([backbone]) if backbone else ""


def _read_content(path: Path, trust_pickle: bool) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".pkl":
        return read_pickle(path, trust_pickle=trust_pickle)
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location="cpu").state_dict()
    try:
        with torch.serialization.safe_globals(list(_SAFE_CLASSES)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not is_pickle(path):
            raise
        if trust_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        raise _unsafe(path, _unsafe_globals(path)) from error


def read_pickle(path: Path, *, trust_pickle: bool = False) -> Any:
    """Return the content of a pickle of NumPy arrays; raises `UserError` for one that could run code."""
    with path.open("rb") as file:
        unpickler: pickle.Unpickler = _ArrayUnpickler(file, encoding="latin1")
        if trust_pickle:
            unpickler = pickle.Unpickler(file, encoding="latin1")
        try:
            return unpickler.load()
        except _ForbiddenGlobalError as error:
            raise _unsafe(path, str(error)) from error


class _ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle contains objects other than arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles the NumPy arrays of Detectron2's model zoo and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE_PICKLE_GLOBALS:
            return super().find_class(module, name)
        raise _ForbiddenGlobalError(f"{module}.{name}")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _unsafe_globals(path: Path) -> str:
    try:
        return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the legacy, non-zip format cannot be listed
        return "objects other than tensors"


def _unsafe(path: Path, names: str) -> UserError:
    return user_error(
        str(path),
        "tensors only",
        f"a pickle that could run code ({names})",
        "if you trust where it comes from, add --trust-pickle",
    )


def _split(path: str, content: Any, *, averaged: bool) -> Checkpoint:
    if not isinstance(content, dict):
        raise user_error(path, "a state dict", type(content).__name__, "save model.state_dict() with torch.save")
    wrapped = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[wrapped] if wrapped else content.get("blobs", content)
    extra = {key: value for key, value in content.items() if key != wrapped} if wrapped else {}
    run = extra.get("run")
    if averaged and isinstance(run, dict) and isinstance(run.get("average"), dict):
        state = {**state, **run["average"]}
    tensors = {_unwrapped(key): _as_tensor(value) for key, value in state.items() if _is_array(value)}
    if not tensors:
        raise user_error(path, "weights", f"no tensors among {len(state)} entries", "check that it is the right file")
    return Checkpoint(path, tensors, extra)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(value)


def _unwrapped(key: str) -> str:
    while key.startswith(_WRAPPER_PREFIXES):  # compiled and distributed, in either order
        key = key.partition(".")[2]
    return key
