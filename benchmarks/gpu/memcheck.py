"""Small inputs for each operator, under compute-sanitizer if installed.

python -m gpu.memcheck DEVICE
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import torch

from gpu.step import Notes, Setting
from regionclip.ops import batched_nms, nms, roi_align, soft_nms

ERRORS_FOUND = 9
"""Exit code of compute-sanitizer when it finds errors."""


def work(setting: Setting, notes: Notes) -> None:
    """Run this file under the sanitizer; raises `RuntimeError` on invalid memory accesses."""
    sanitizer = shutil.which("compute-sanitizer")
    checked = sanitizer is not None and setting.device == "cuda"
    prefix = [str(sanitizer), "--tool", "memcheck", "--error-exitcode", str(ERRORS_FOUND)] if checked else []
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "gpu.memcheck", setting.device], capture_output=True, text=True, check=False
    )
    print(done.stdout[-3000:], done.stderr[-3000:])
    notes["under_compute_sanitizer"], notes["exit_code"] = checked, done.returncode
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}")


def solve(device: str) -> None:
    """Call each kernel with odd sizes, and with boxes outside the map or non-finite."""
    torch.manual_seed(0)
    boxes = torch.rand(70, 4, device=device) * 60 - 10
    boxes[:, 2:] += boxes[:, :2]
    boxes[3] = float("nan")
    scores, classes = torch.rand(70, device=device), torch.arange(70, device=device) % 3
    rois = torch.cat([torch.arange(70, device=device)[:, None] % 2, boxes], dim=1)
    for dtype in (torch.float32, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic)
                maps = torch.randn(2, 19, 13, 11, device=device, dtype=dtype).contiguous(memory_format=layout)
                maps.requires_grad_()
                roi_align(maps, rois.float(), (5, 3), 1 / 4, 0, True).sum().backward()
    for limit in (None, 0, 7):
        nms(boxes, scores, 0.5, limit)
        batched_nms(boxes, scores, classes, 0.5, limit)
        soft_nms(boxes, scores, classes, max_detections=limit)


if __name__ == "__main__":
    solve(sys.argv[1])
