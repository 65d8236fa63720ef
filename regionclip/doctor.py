"""Check of the installation: `regionclip doctor`, or `python -m regionclip.doctor` without the command."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from regionclip.files import REPOSITORY, download_folder

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 10)
SETUP = "run `make setup`"

LIBRARIES = {
    "open_clip": "open_clip_torch",
    "safetensors": "safetensors",
    "pycocotools": "pycocotools",
    "lvis": "lvis",
    "faster_coco_eval": "faster-coco-eval",
    "cv2": "opencv-python-headless",
    "typer": "typer",
    "huggingface_hub": "huggingface_hub",
}
"""Smaller dependencies: modules, and the distributions that provide them."""

EXTRAS = {
    "video": ("av", "drawn videos that browsers play"),
    "track": ("trackers", "detect --track"),
    "data": ("supervision", "YOLO and Pascal VOC for train --data"),
    "serve": ("fastapi", "regionclip serve"),
    "demo": ("gradio", "regionclip demo"),
    "parquet": ("pyarrow", "Parquet"),
    "onnx": ("onnxruntime", "regionclip export"),
}
"""Extras of pyproject.toml that commands use: a module of each, and what it is for."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    component: str
    state: str
    fix: str = ""
    """Empty if there is no problem."""
    required: bool = True
    """Whether detection requires it."""


def check_python() -> Finding:
    """Check the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, MIN_PYTHON))
    return Finding("python", version, "" if sys.version_info >= MIN_PYTHON else f"use Python {wanted} or newer")


def check_torch() -> Finding:
    """Check torch and its version."""
    version, problem = _import("torch")
    if problem:
        return Finding("torch", problem, SETUP)
    number = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    wanted = ".".join(map(str, MIN_TORCH))
    return Finding("torch", version, "" if number >= MIN_TORCH else f"install torch {wanted} or newer")


def check_cuda() -> Finding:
    """Report the devices for models; a CPU is enough."""
    if importlib.util.find_spec("torch") is None:
        return Finding("CUDA", "unknown without torch", SETUP, required=False)
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("CUDA", f"{torch.version.cuda}, {torch.cuda.device_count()} x {', '.join(sorted(names))}")
    compiler = "nvcc found" if shutil.which("nvcc") else "no nvcc"
    built = f"torch built for {torch.version.cuda}" if torch.version.cuda else "torch built for CPU"
    return Finding("CUDA", f"no GPU: models run on the CPU ({built}, {compiler})", required=False)


def check_torchvision() -> Finding:
    """Check that torchvision imports with this torch and that its operators run."""
    version, problem = _import("torchvision")
    if not problem:
        try:
            import torch
            import torchvision

            torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        except Exception as error:
            problem = f"{version}, operators fail: {_first_line(error)}"
    return Finding("torchvision", problem or version, "install the torchvision of this torch" if problem else "")


def check_detectron2() -> Finding:
    """Check Detectron2; its compiled extension is not needed."""
    version, problem = _import("detectron2")
    return Finding("detectron2", problem or version, f"{SETUP}, or see INSTALL.md" if problem else "")


def check_libraries() -> Finding:
    """Check the smaller libraries."""
    missing = [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    return Finding("libraries", f"missing: {', '.join(missing)}" if missing else "all found", SETUP if missing else "")


def check_extras() -> Finding:
    """List what is optional, and how to get what is missing."""
    missing = [name for name, (module, _) in EXTRAS.items() if importlib.util.find_spec(module) is None]
    found = [name for name in EXTRAS if name not in missing]
    state = ", ".join(found) or "none"
    if not missing:
        return Finding("extras", state, required=False)
    lacking = "; ".join(f"{name} ({EXTRAS[name][1]})" for name in missing)
    fix = f'pip install "regionclip[{",".join(missing)}]"'
    return Finding("extras", f"{state}; without {lacking}", fix, required=False)


def check_extension() -> Finding:
    """Report whether the native operators are built, and for which devices; without them slower ones are used."""
    if importlib.util.find_spec("torch") is None:
        return Finding("native operators", "unknown without torch", SETUP, required=False)
    from regionclip.ops import native_problem

    problem = native_problem("cpu")
    if problem:
        fix = f"install a C++ compiler (apt install g++), then {SETUP}"
        return Finding("native operators", f"PyTorch's are used: {problem}", fix, required=False)
    return Finding("native operators", "for CPU" if native_problem("cuda") else "for CPU and CUDA", required=False)


def check_processor() -> Finding:
    """Report the instruction set of the CPU operators, and the native precisions of the processor."""
    try:
        from regionclip.modeling.inference.precision import PRECISIONS, is_native
        from regionclip.ops import native, native_problem
    except ImportError:
        return Finding("processor", "unknown without torch and Detectron2", SETUP, required=False)
    try:
        loops = "PyTorch's loops" if native_problem("cpu") else f"loops for {native.instruction_set()}"
    except RuntimeError as error:
        return Finding("processor", _first_line(error), "unset REGIONCLIP_ISA", required=False)
    precisions = ", ".join(name for name in PRECISIONS if is_native(name, "cpu"))
    return Finding("processor", f"{loops}; computes in {precisions}", required=False)


def check_weights() -> Finding:
    """List the weights under `pretrained_ckpt/`."""
    endings = {".pth", ".pt", ".pkl", ".safetensors"}
    folders = dict.fromkeys(place / "pretrained_ckpt" for place in (REPOSITORY, download_folder()))
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in endings)
    if not found:
        return Finding("weights", "none in pretrained_ckpt/", "see docs/MODEL_ZOO.md", required=False)
    size = sum(path.stat().st_size for path in found) / 1e9
    places = " and ".join(map(_relative, folders))
    return Finding("weights", f"{len(found)} files, {size:.1f} GB in {places}", required=False)


def check_default_detector() -> Finding:
    """Check that the default detector of `regionclip detect` is available."""
    chosen = os.environ.get("REGIONCLIP_MODEL")
    if chosen:
        return Finding("default detector", f"{chosen}, named by REGIONCLIP_MODEL", required=False)
    from regionclip.hub.default import default_model
    from regionclip.hub.zoo import EMBEDDED

    found = default_model()
    if found.name != EMBEDDED:
        return Finding("default detector", f"{found.name}, {found.reason}", required=False)
    folder = REPOSITORY / "pretrained_ckpt" / "emoji"
    if (folder / "model.safetensors").is_file():
        return Finding("default detector", f"emoji in {_relative(folder)}", required=False)
    state = f"emoji is not in {folder}"
    fix = "install the package again, or name a detector in REGIONCLIP_MODEL (docs/MODEL_ZOO.md)"
    return Finding("default detector", state, fix, required=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_cuda,
    check_torchvision,
    check_detectron2,
    check_libraries,
    check_extras,
    check_extension,
    check_processor,
    check_weights,
    check_default_detector,
)


def main(*, as_json: bool = False) -> int:
    """Print the table, with `as_json` also one line of JSON; return 1 if a required part has a problem, else 0."""
    findings = [_checked(check) for check in CHECKS]
    names, states = (max(len(getattr(f, part)) for f in findings) for part in ("component", "state"))
    for finding in findings:
        mark = "ok" if not finding.fix else ("FIX" if finding.required else "-")
        print(f"{mark:<4}{finding.component:<{names}}  {finding.state:<{states}}  {finding.fix}".rstrip())
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    return int(any(finding.fix and finding.required for finding in findings))


def _checked(check: Callable[[], Finding]) -> Finding:
    """Return the row of a check, also where it needs something that is broken, which another row names."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Finding(name, f"unknown: {_first_line(error)}", "see the other rows", required=False)


def _import(module: str) -> tuple[str, str]:
    """Return (version, problem); one of them is empty."""
    if importlib.util.find_spec(module) is None:
        return "", "not installed"
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        return "", f"cannot be imported: {_first_line(error)}"
    return str(getattr(imported, "__version__", "unknown version")), ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


if __name__ == "__main__":
    sys.exit(main())
