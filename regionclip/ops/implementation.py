"""Selection of the operators' implementation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Final

import torch

from regionclip.ops import native, reference, torchvision_ops
from regionclip.ops import pytorch_ops as embedding_bag

VARIABLE: Final = "REGIONCLIP_OPS"
"""Environment variable that forces one of `IMPLEMENTATIONS`."""

IMPLEMENTATIONS: Final[dict[str, ModuleType]] = {
    "native": native,
    "pytorch": embedding_bag,
    "torchvision": torchvision_ops,
    "reference": reference,
}
"""Modules with the same three functions: `roi_align`, `nms`, `soft_nms`."""

_forced: list[str] = []


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Use one implementation of the operators in a `with` block, regardless of the environment."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def implementation(device: torch.device) -> ModuleType:
    """Return the implementation for tensors on `device`.

    The native one if it is built for the device, else PyTorch's; the environment variable or
    `use_implementation` forces one.

    Raises:
        ValueError: the forced name is unknown.
        RuntimeError: the native operators are forced but unavailable.
    """
    name = _forced[-1] if _forced else os.environ.get(VARIABLE, "")
    if name and name not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(IMPLEMENTATIONS)}, got {name!r}. Fix: unset it")
    if name not in ("", "native"):
        return IMPLEMENTATIONS[name]
    problem = native_problem(device.type)
    if not problem:
        return native
    if name:
        raise RuntimeError(f"{VARIABLE}=native: {problem}. Fix: make setup (INSTALL.md), or unset it")
    _warn_once(problem)
    return embedding_bag


def native_problem(device_type: str) -> str:
    """Return why the native operators are unavailable on a device type; empty if they are available."""
    return _PROBLEMS.get(device_type, f"there are none for {device_type}")


def _find_problems() -> dict[str, str]:
    # Evaluated at import, so that torch.compile sees constants.
    problem = native.load()
    if problem:
        return {"cpu": problem, "cuda": problem}
    native.register()
    with_cuda = native.supports("cuda")
    return {"cpu": "", "meta": "", "cuda": "" if with_cuda else "they were built without CUDA"}


_PROBLEMS: Final = _find_problems()


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"native operators are not used, slower ones take their place: {problem}. "
        f"Fix: make setup (INSTALL.md); {VARIABLE}=pytorch silences this",
        stacklevel=4,
    )
