#!/usr/bin/env python3
"""Install what is missing into the environment of the Python that runs this; needs only package registries.

Whatever is there already, a torch or a Detectron2 of the user above all, is left as it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distributions, entry_points
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Package(NamedTuple):
    """A module to look for, and how pip brings it when it is missing."""

    module: str
    requirement: str
    options: tuple[str, ...] = ()


DETECTRON2_OPTIONS = (
    # Detectron2 is on no registry under its own name. This distribution carries its current source;
    # the compiled part belongs to Python 3.10 and is not needed, and its version pins do not apply.
    *("--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
    *("--target", sysconfig.get_paths()["purelib"]),
)

PACKAGES = (
    Package("pkg_resources", "setuptools<81"),
    Package("wheel", "wheel"),
    Package("ninja", "ninja"),
    Package("torch", "torch==2.11.0"),
    Package("fvcore", "fvcore"),
    Package("iopath", "iopath"),
    Package("yacs", "yacs"),
    Package("omegaconf", "omegaconf>=2.1"),
    Package("hydra", "hydra-core>=1.1"),
    Package("tabulate", "tabulate"),
    Package("cloudpickle", "cloudpickle"),
    Package("termcolor", "termcolor"),
    Package("tensorboard", "tensorboard"),
    Package("matplotlib", "matplotlib"),
    Package("pycocotools", "pycocotools"),
    Package("detectron2", "sal-detectron2==0.7.2", DETECTRON2_OPTIONS),
    Package("safetensors", "safetensors"),
    Package("tqdm", "tqdm"),
    Package("cv2", "opencv-python-headless"),
    Package("lvis", "lvis==0.5.3", ("--no-deps",)),  # it asks for OpenCV with windows, which servers lack
    Package("faster_coco_eval", "faster-coco-eval>=1.6"),
    Package("filelock", "filelock"),
    Package("huggingface_hub", "huggingface_hub"),
    Package("typer", "typer>=0.15"),
    Package("pyarrow", "pyarrow"),
    Package("onnxscript", "onnxscript"),  # with onnx
    Package("onnxruntime", "onnxruntime"),
    Package("pytest", "pytest"),
    Package("xdist", "pytest-xdist"),
    Package("hypothesis", "hypothesis"),
    Package("ruff", "ruff==0.17.5"),
    Package("mypy", "mypy==2.4.1"),
)

KEPT = ("torch", "torchvision", "numpy", "pillow", "opencv-python", "opencv-python-headless", "pycocotools")
"""Distributions that keep their version: other software of the environment was built against them."""


def is_missing(package: Package) -> bool:
    """Return whether the module cannot be found."""
    return importlib.util.find_spec(package.module) is None


def installed_versions() -> list[str]:
    """Return the requirements that keep what is installed: pip may add to it, never change it."""
    installed = {distribution.metadata["Name"]: distribution.version for distribution in distributions()}
    return [f"{name}=={version}" for name, version in sorted(installed.items()) if name in KEPT]


def pip_install(*arguments: str) -> None:
    """Run `pip install`; stop with its exit code when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(installed_versions()))
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run([*command, "--constraint", constraints.name, *arguments], check=False)
    if result.returncode:
        sys.exit(f"error: pip install {' '.join(arguments)} failed; check the connection to the package registry")


def install_missing() -> None:
    """Install the missing packages: torch first, then all that need no options together, then the others."""
    missing = [package for package in PACKAGES if is_missing(package)]
    if any(package.module == "torch" for package in missing):
        # Together, so that pip picks two that fit.
        pip_install("torch==2.11.0", "torchvision==0.26.0")
    elif importlib.util.find_spec("torchvision") is None:
        pip_install("--no-deps", f"torchvision=={matching_torchvision()}")
    plain = [package.requirement for package in missing if not package.options and package.module != "torch"]
    if plain:
        pip_install(*plain)
    for package in missing:
        if package.options:
            pip_install(*package.options, package.requirement)
    if importlib.util.find_spec("open_clip") is None:
        pip_install("open_clip_torch>=2.30")
    if missing:
        print("installed:", ", ".join(package.requirement for package in missing))


def matching_torchvision() -> str:
    """Return the torchvision version that belongs to the installed torch: 2.11 goes with 0.26, and so on."""
    from importlib.metadata import version

    minor = int(version("torch").split(".")[1])
    return f"0.{minor + 15}.*"


def install_this_package() -> None:
    """Install the package in editable mode unless it is, and build the native operators unless they are current."""
    found = importlib.util.find_spec("regionclip")
    is_installed = found is not None and str(found.origin).startswith(str(REPOSITORY))
    is_installed = is_installed and "regionclip" in {script.name for script in entry_points(group="console_scripts")}
    if not is_installed or (operators_are_outdated() and has_compiler()):
        print("building the native operators (a minute or two)", flush=True)
        pip_install("--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY))


def operators_are_outdated() -> bool:
    """Return whether a source of the native operators is newer than what was built, or nothing was."""
    folder = REPOSITORY / "regionclip" / "ops"
    built = folder / "_native.abi3.so"
    sources = (path for path in (folder / "csrc").rglob("*") if path.is_file())
    return not built.is_file() or any(path.stat().st_mtime > built.stat().st_mtime for path in sources)


def has_compiler() -> bool:
    """Return whether there is a C++ compiler; without one PyTorch's operators take the place of the native."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


if __name__ == "__main__":
    install_missing()
    importlib.invalidate_caches()
    install_this_package()
