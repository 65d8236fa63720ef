"""Description of the machine, stored with each result in docs/metrics.json."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision

from regionclip import __version__
from regionclip.modeling.inference.precision import is_native
from regionclip.ops import native, native_problem


def describe() -> dict[str, str | int]:
    """Return processor, instruction set, versions and date."""
    return {
        "processor": processor(),
        "instruction_set": "none" if native_problem("cpu") else native.instruction_set(),
        "bfloat16": "native" if is_native("bfloat16", "cpu") else "emulated",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "regionclip": __version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """Return model name, family and model of the processor, as far as known."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in information.read_text().split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name", platform.machine())
    return f"{name}, family {known['cpu family']}, model {known['model']}" if "cpu family" in known else name
