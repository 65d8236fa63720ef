"""The default detector on the device: `regionclip detect` on a folder, and its AP50 there and on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import sys
import time
from pathlib import Path

from gpu.step import Notes, Setting
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.files import REPOSITORY

SHIPPED = "pretrained_ckpt/emoji"
WORDS = "wood, carrot, telescope"
FILES = {
    "MODEL.WEIGHTS": "model.safetensors",
    "MODEL.CLIP.ARCHITECTURE": "emoji_clip.json",
    "MODEL.CLIP.BB_RPN_WEIGHTS": "model.safetensors",
    "MODEL.CLIP.OFFLINE_RPN_CONFIG": "rpn.yaml",
    "MODEL.CLIP.TEXT_EMB_PATH": "vocabulary.safetensors",
}
"""What of the configuration describes the shipped weights: the configs in `configs/EmojiOVD` may train other shapes."""


def work(setting: Setting, notes: Notes) -> None:
    """Record the seconds of the command with two batch sizes, and the metrics of the evaluation."""
    images = Path(datasets_root()) / "emoji" / "val"
    notes["images"] = len(list(images.iterdir()))
    for batch in (1, 8):
        output = setting.scratch / f"batch{batch}"
        options = ["--words", WORDS, "--batch", str(batch), "--device", setting.device, "--output", str(output)]
        seconds = seconds_of_command("regionclip/__main__.py", "detect", str(images), *options)
        notes[f"detect --batch {batch}, seconds with loading"] = seconds
    for device in dict.fromkeys((setting.device, "cpu")):
        notes[f"AP50 on {device}"] = evaluate(device, setting.scratch / f"evaluation_{device}")


def evaluate(device: str, output: Path) -> float:
    """Return the AP50 of the default detector, zero-shot with its own RPN, over all its class names."""
    overrides = [part for key, name in FILES.items() for part in (key, f"{SHIPPED}/{name}")]
    config = ["--eval-only", "--config-file", "configs/EmojiOVD/detector.yaml", "--num-gpus", "1"]
    seconds_of_command("tools/train_net.py", *config, "OUTPUT_DIR", str(output), "MODEL.DEVICE", device, *overrides)
    return json.loads((output / "inference" / "metrics.json").read_text())["metrics"]["bbox"]["AP50"]


def seconds_of_command(script: str, *arguments: str) -> float:
    """Run a script of the repository in a process with preloaded imports; return its seconds.

    Raises:
        RuntimeError: its exit code is not 0.
    """
    process = multiprocessing.get_context("fork").Process(target=_run_script, args=(script, arguments))
    start = time.perf_counter()
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{script}: exit code {process.exitcode}")
    return time.perf_counter() - start


def _run_script(script: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [script, *arguments]
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")
