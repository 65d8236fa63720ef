"""Which implementation of the operators runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Final

import torch

from regionclip.ops import embedding_bag, native, reference, torchvision_ops

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
    """Run the operators of one implementation in the block, whatever the environment says."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def implementation(device: torch.device) -> ModuleType:
    """Return the implementation for tensors on `device`.

    The native one when it is built for the device, else PyTorch's; an environment variable or
    `use_implementation` forces one.

    Raises:
        ValueError: the forced name is unknown.
        RuntimeError: the native operators are forced and cannot be used.
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


@cache
def native_problem(device_type: str) -> str:
    """Return why the native operators cannot be used on a kind of device, or nothing."""
    problem = _load()
    if problem:
        return problem
    return "" if native.supports(torch.device(device_type)) else f"they were built without {device_type.upper()}"


@cache
def _load() -> str:
    problem = native.load()
    if not problem:
        native.register()
    return problem


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"native operators are not used, slower ones take their place: {problem}. "
        f"Fix: make setup (INSTALL.md); {VARIABLE}=pytorch silences this",
        stacklevel=4,
    )
