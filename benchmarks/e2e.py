#!/usr/bin/env python3
"""Time a whole detector against the baseline (benchmarks/baseline.py), image by image in one run.

    python benchmarks/e2e.py [--model RN50|RN50x4|emoji] [--boxes rpn|gt] [--images 4] [--repeat 3] [--json]

Weights are generated from key names: times are meaningful, detections are not. The images are those of
datasets/demo_images at 800 pixels; 1000 proposals, none of which is dropped for its objectness, and
1203 classes. `emoji` is the default detector with its trained RPN, 1000 proposals, its 1174 classes and
the published fusion, which drops proposals with negative objectness, on datasets/demo_scenes.
Each round runs the baseline, then this package in float32 and, if native to the processor, in bfloat16 and in that
from earlier stages of the backbone on, each in a separate process that otherwise waits; the ratio is the median over
rounds. Memory is the peak of such a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from baseline import PlainDetector
from detectron2.structures import Boxes, Instances
from tabulate import tabulate

from regionclip.config.loading import load_config
from regionclip.data.datasets.custom_images import list_images
from regionclip.data.images import read_image
from regionclip.data.test_loader import TestMapper
from regionclip.files import REPOSITORY
from regionclip.hub.pretrained import load_pretrained
from regionclip.hub.zoo import MODELS
from regionclip.memory import keep_freed_memory
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.build import build_model
from regionclip.modeling.inference.precision import is_native
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.testing.deterministic import fill_deterministic

PATHS = {
    "plain": (),
    "float32": ("float32",),
    "bfloat16": ("bfloat16",),
    "bfloat16_from_res3": ("bfloat16", "res3"),
    "bfloat16_from_stem": ("bfloat16", "stem"),
}
"""Arguments of `prepare_for_inference` for each path; none for the baseline."""


def native_paths() -> list[str]:
    """Return the paths whose precision is native to the processor."""
    return [path for path, asked in PATHS.items() if not asked or is_native(asked[0], "cpu")]


Detect = Callable[[Sequence[dict[str, Any]]], Any]


def make_trained_model(boxes: str, proposals: int) -> CLIPFastRCNN:
    """Return the default detector with its own vocabulary, and options as in the published detectors."""
    options = {
        "MODEL.CLIP.CROP_REGION_TYPE": boxes.upper(),
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": str(boxes == "rpn"),
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": str(proposals),
        "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": "0.7",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.01",
    }
    found = load_pretrained("emoji", overrides=[part for pair in options.items() for part in pair], device="cpu")
    model = cast(CLIPFastRCNN, found.model)
    assert found.vocabulary is not None
    predictor = model.roi_heads.box_predictor
    predictor.cls_score.weight.copy_(found.vocabulary.embeddings)
    return model


def make_model(name: str, boxes: str, proposals: int) -> CLIPFastRCNN:
    """Return a detector: the default one, or the published LVIS detector with generated weights and embeddings."""
    if name == "emoji":
        return make_trained_model(boxes, proposals)
    published = MODELS[f"regionclip_pretrained-cc_{name.lower()}"]
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_ON": "False",
        "MODEL.CLIP.TEXT_EMB_PATH": "",
        "MODEL.CLIP.VIS": "False",
        "MODEL.CLIP.CROP_REGION_TYPE": boxes.upper(),
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": str(boxes == "rpn"),
        "MODEL.CLIP.RPN_SCORE_FUSION": "sigmoid",
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": str(proposals),
    }
    cfg = load_config(published.config, [*published.overrides, *(part for pair in options.items() for part in pair)])
    model = cast(CLIPFastRCNN, build_model(cfg))
    fill_deterministic(model)
    return model


def make_path(path: str, arguments: argparse.Namespace) -> Detect:
    """Return one of `PATHS`."""
    model = make_model(arguments.model, arguments.boxes, arguments.proposals)
    if path == "plain":
        return PlainDetector(model)
    keep_freed_memory()
    prepare_for_inference(model, *PATHS[path])
    return lambda inputs: model.inference(inputs, do_postprocess=False)


def read_inputs(name: str, count: int, folder: Path | None = None) -> list[dict[str, Any]]:
    """Return images for a detector, with seven boxes each if boxes are given."""
    own_folder, sides = ("demo_scenes", (448, 720)) if name == "emoji" else ("demo_images", (800, 1333))
    mapper = TestMapper(*sides, "RGB", keep_annotations=False)
    photos = list_images(folder or REPOSITORY / "datasets" / own_folder)
    inputs = []
    for number in range(count):
        mapped = mapper.map_pixels(read_image(photos[number % len(photos)]))
        height, width = mapped["image"].shape[1:]
        generator = torch.Generator().manual_seed(number)
        corner = torch.rand(7, 2, generator=generator) * torch.tensor([width, height]) / 2
        annotated = Instances((height, width))
        annotated.gt_boxes = Boxes(torch.cat([corner, corner * 2 + 16], dim=1))
        inputs.append({**mapped, "instances": annotated})
    return inputs


_loaded: dict[str, Any] = {}
"""State of a path's process."""


def load_path(path: str, arguments: argparse.Namespace) -> None:
    """Create the detector and images of this process, then reset its peak memory."""
    torch.set_grad_enabled(False)
    _loaded["detect"] = make_path(path, arguments)
    _loaded["inputs"] = read_inputs(arguments.model, arguments.images)
    Path("/proc/self/clear_refs").write_text("5")


def time_detection(number: int) -> float:
    """Return the seconds for one of the images in this process."""
    start = time.perf_counter()
    _loaded["detect"]([_loaded["inputs"][number]])
    return time.perf_counter() - start


def peak_memory() -> int:
    """Return the peak memory in bytes of this process since loading, weights included; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return for each path the seconds of each image and round, in the same order, and the memory."""
    spawn = multiprocessing.get_context("spawn")
    pools = {path: spawn.Pool(1, load_path, (path, arguments)) for path in native_paths()}
    seconds: dict[str, list[float]] = {path: [] for path in pools}
    for pool in pools.values():
        pool.apply(time_detection, (0,))
    for _ in range(arguments.repeat):
        for number in range(arguments.images):
            for path, pool in pools.items():
                seconds[path].append(pool.apply(time_detection, (number,)))
    memory = {path: pool.apply(peak_memory) for path, pool in pools.items()}
    for pool in pools.values():
        pool.terminate()
    return seconds, memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", choices=["RN50", "RN50x4", "emoji"])
    parser.add_argument("--boxes", default="rpn", choices=["rpn", "gt"])
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    seconds, memory = measure(arguments)
    rows, metrics = [], {}
    for path in seconds:
        median = statistics.median(seconds[path])
        speedup = statistics.median(a / b for a, b in zip(seconds["plain"], seconds[path], strict=True))
        rows.append([path, f"{median * 1e3:.0f}", f"{speedup:.2f}", f"{memory[path] / 1e9:.2f}"])
        metrics[f"speedup_{path}"] = speedup
        metrics[f"memory_{path}"] = memory[path]
    metrics["ms_per_image"] = statistics.median(seconds["float32"]) * 1e3
    metrics["baseline_ms_per_image"] = statistics.median(seconds["plain"]) * 1e3
    task = f"{arguments.model}, boxes {arguments.boxes}, {arguments.proposals} proposals"
    print(f"{task}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=["path", "ms an image", "times as fast", "GB at most"]))
    if arguments.json:
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
