#!/usr/bin/env python3
"""Install missing dependencies into the environment of the running Python; needs only package registries.

The user's torch, torchvision, numpy, Pillow, OpenCV, pycocotools and Detectron2 are not changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib.metadata import distributions, entry_points
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Package(NamedTuple):
    """A module, and the pip requirement that provides it."""

    module: str
    requirement: str
    options: tuple[str, ...] = ()


DETECTRON2_OPTIONS = (
    # Detectron2 is on no registry under its own name. This distribution has its current source;
    # its extension is for Python 3.10 but not needed, and its version pins do not apply.
    *("--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
    *("--target", sysconfig.get_paths()["purelib"]),
)

PACKAGES = (
    Package("pkg_resources", "setuptools<81"),
    Package("wheel", "wheel"),  # without it an older setuptools makes no wheels
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
    Package("scipy", "scipy"),
    Package("cv2", "opencv-python-headless"),
    Package("lvis", "lvis==0.5.3", ("--no-deps",)),  # it requires OpenCV with GUI, which servers lack
    Package("faster_coco_eval", "faster-coco-eval>=1.6"),
    Package("filelock", "filelock"),
    Package("huggingface_hub", "huggingface_hub"),
    Package("typer", "typer>=0.15"),
)
"""What running needs: Detectron2 with its dependencies, and those of this package; torchvision and open_clip apart."""

DEVELOPMENT = (
    Package("ninja", "ninja"),
    Package("pyarrow", "pyarrow"),
    Package("onnxscript", "onnxscript"),  # with onnx
    Package("onnxruntime", "onnxruntime"),
    Package("supervision", "supervision>=0.31"),
    Package("av", "av>=14.2"),  # which supervision requires too
    Package("trackers", "trackers>=2.6", ("--no-deps",)),  # it requires OpenCV with GUI; all else is there
    Package("resvg_py", "resvg_py"),
    Package("fastapi", "fastapi"),
    Package("fastapi_offline", "fastapi-offline"),
    Package("uvicorn", "uvicorn"),
    Package("python_multipart", "python-multipart"),
    Package("prometheus_client", "prometheus-client"),
    Package("pytest", "pytest"),
    Package("xdist", "pytest-xdist"),
    Package("hypothesis", "hypothesis"),
    Package("ruff", "ruff==0.17.5"),
    Package("mypy", "mypy==2.4.1"),
)
"""What building, and testing with all extras, needs too."""

BUILD_PROBLEM = REPOSITORY / "regionclip" / "ops" / "build_problem.txt"
"""Where setup.py writes why operators are not built."""

COMMAND = "regionclip.cli.main:main"
"""What the command `regionclip` runs, as pyproject.toml says."""

KEPT = ("torch", "torchvision", "numpy", "pillow", "opencv-python", "opencv-python-headless", "pycocotools")
"""Distributions that keep their version, since other software of the environment depends on them."""

KEPT_TO_RUN = ("torch", "torchvision")
"""The same where nothing else is in the environment: extras may need an older pillow than torchvision brought."""


def is_missing(package: Package) -> bool:
    """Return whether the module cannot be found."""
    return importlib.util.find_spec(package.module) is None


def installed_versions(kept: tuple[str, ...]) -> list[str]:
    """Return constraints on installed packages: pip may install others, but not change these."""
    # What an interrupted installation left behind has no name.
    found = [(distribution.metadata["Name"], distribution) for distribution in distributions()]
    installed = {name.lower(): distribution.version for name, distribution in found if name}
    return [f"{name}=={version}" for name, version in sorted(installed.items()) if name in kept]


def pip_install(*arguments: str, kept: tuple[str, ...] = KEPT) -> None:
    """Run `pip install`, which does not change the `kept`; exit with its exit code on failure."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(installed_versions(kept)))
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run([*command, "--constraint", constraints.name, *arguments], check=False)
    if result.returncode:
        sys.exit(f"error: pip install {' '.join(arguments)} failed; check the connection to the package registry")


def install_missing(packages: tuple[Package, ...], extras: list[str], kept: tuple[str, ...]) -> None:
    """Install the missing packages: torch first, then all without extra options together, then the others.

    Args:
        packages: to install where they are missing.
        extras: further requirements.
        kept: distributions that keep their version.
    """
    missing = [package for package in packages if is_missing(package)]
    if any(package.module == "torch" for package in missing):
        # Together, so that pip selects matching versions.
        pip_install("torch==2.11.0", "torchvision==0.26.0", kept=kept)
    elif importlib.util.find_spec("torchvision") is None:
        pip_install("--no-deps", f"torchvision=={matching_torchvision()}", kept=kept)
    plain = [package.requirement for package in missing if not package.options and package.module != "torch"]
    plain += extras
    if plain:
        pip_install(*plain, kept=kept)
    for package in missing:
        if package.options:
            pip_install(*package.options, package.requirement, kept=kept)
    if importlib.util.find_spec("open_clip") is None:
        pip_install("open_clip_torch>=2.30", kept=kept)
    if missing:
        print("installed:", ", ".join(package.requirement for package in missing))


def requirements_of(extras: str) -> list[str]:
    """Return the requirements of extras, separated by commas, that pyproject.toml lists; exit for an unknown one."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    names = [name.strip() for name in extras.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"error: --to-run {extras}: expected extras of {', '.join(known)}, got {unknown[0]}; correct the name")
    return [requirement for name in names for requirement in known[name]]


def matching_torchvision() -> str:
    """Return the torchvision version that matches the installed torch: 0.26 for 2.11, and so on."""
    from importlib.metadata import version

    minor = int(version("torch").split(".")[1])
    return f"0.{minor + 15}.*"


def install_this_package() -> None:
    """Install the package in editable mode and build the native operators, unless up to date."""
    found = importlib.util.find_spec("regionclip")
    is_installed = found is not None and str(found.origin).startswith(str(REPOSITORY))
    is_installed = is_installed and COMMAND in {script.value for script in entry_points(group="console_scripts")}
    if not is_installed or (operators_are_outdated() and has_compiler()):
        print("building the native operators (a minute or two)", flush=True)
        pip_install("--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY))
        if BUILD_PROBLEM.is_file():  # pip is quiet about it
            print(f"warning: not all native operators are built: {BUILD_PROBLEM.read_text()}", file=sys.stderr)


def operators_are_outdated() -> bool:
    """Return whether native operators that can be built are not, or are older than their sources."""
    folder = REPOSITORY / "regionclip" / "ops"
    built = [folder / "_native.abi3.so", *([folder / "_native_cuda.abi3.so"] if builds_for_cuda() else [])]
    newest = max(path.stat().st_mtime for path in (folder / "csrc").rglob("*") if path.is_file())
    return any(not path.is_file() or path.stat().st_mtime < newest for path in built)


def builds_for_cuda() -> bool:
    """Return whether setup.py builds the operators for GPUs, and did not fail to when it was last tried."""
    if "FORCE_CUDA" in os.environ:
        return os.environ["FORCE_CUDA"] == "1"
    if not shutil.which("nvcc") or BUILD_PROBLEM.is_file():
        return False
    try:
        import torch
    except Exception:  # the table at the end says what is wrong with it
        return False
    return bool(torch.version.cuda)


def has_compiler() -> bool:
    """Return whether there is a C++ compiler; without one PyTorch's operators are used."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def main() -> None:
    """Install what development needs and this package, or with --to-run what a wheel of it needs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--to-run",
        metavar="EXTRAS",
        help="only what a wheel needs, with these extras (serve,demo; '' for none): no tools, and not this package",
    )
    parser.add_argument("--list", action="store_true", help="print the requirements and install nothing")
    arguments = parser.parse_args()
    is_to_run = arguments.to_run is not None
    packages = PACKAGES if is_to_run else PACKAGES + DEVELOPMENT
    extras = requirements_of(arguments.to_run) if is_to_run else []
    if arguments.list:
        print("\n".join([*(package.requirement for package in packages), *extras]))
        return
    install_missing(packages, extras, KEPT_TO_RUN if is_to_run else KEPT)
    if not is_to_run:
        importlib.invalidate_caches()
        install_this_package()


if __name__ == "__main__":
    main()
