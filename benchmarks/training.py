#!/usr/bin/env python3
"""Measure time and peak memory of a training step of each published config, on images of full size.

    python benchmarks/training.py [--images N] [--steps N] [CASE ...]

Each case runs in a separate process, on a GPU if there is one. Weights are random, so CLIP detectors get
1000 random boxes instead of the few that a random RPN would give; the others have fewer regions
than in a real run. On a CPU, memory is that of the process without Python and the libraries.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from timing import seconds_of
from tqdm import tqdm

from regionclip.config.loading import load_config
from regionclip.engine.training.trainer import DetectorTrainer

COCO, LVIS = "configs/COCO-InstanceSegmentation", "configs/LVISv1-InstanceSegmentation"
LARGE = "MODEL.CLIP.TEXT_EMB_DIM 640 MODEL.RESNETS.DEPTH 200 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 18"
MASKS = "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 18 MODEL.RESNETS.RES2_OUT_CHANNELS 320"
C4 = f"MODEL.CLIP.OFFLINE_RPN_CONFIG {COCO}/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml"
FPN = f"MODEL.CLIP.OFFLINE_RPN_CONFIG {LVIS}/mask_rcnn_R_50_FPN_1x.yaml MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED True"

CASES = {
    "rn50-coco": (f"{COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml", C4),
    "rn50-lvis": (f"{LVIS}/CLIP_fast_rcnn_R_50_C4.yaml", FPN),
    "rn50x4-coco": (f"{COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml", f"{C4} {LARGE}"),
    "rn50x4-lvis": (f"{LVIS}/CLIP_fast_rcnn_R_50_C4.yaml", f"{FPN} {LARGE} {MASKS}"),
    "mask-rcnn-clip-c4": (f"{COCO}/mask_rcnn_CLIP_R_50_C4_1x_ovd_FSD.yaml", ""),
    "mask-rcnn-clip-fpn": (f"{LVIS}/mask_rcnn_CLIP_R_50_FPN_1x.yaml", ""),
    "rpn-coco48": (f"{COCO}/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml", ""),
    "rpn-lvis866": (f"{LVIS}/mask_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES 866"),
    "rpn-lvis866-lsj": (f"{LVIS}/mask_rcnn_R_50_FPN_LSJ.yaml", ""),
}


LARGEST = (800, 1333)
"""Height and width of the largest training images."""


def make_images(count: int, classes: int, masks: bool, size: tuple[int, int] = LARGEST) -> list[dict[str, Any]]:
    """Return noise images with 12 objects each."""
    (height, width), objects = size, 12
    images = []
    for _ in range(count):
        corners = torch.rand(objects, 2) * torch.tensor([width * 0.7, height * 0.7])
        boxes = torch.cat([corners, corners + 0.05 * height + torch.rand(objects, 2) * 0.25 * height], dim=1)
        target = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.randint(0, classes, (objects,)))
        if masks:
            target.gt_masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in boxes])
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        images.append({"image": pixels, "instances": target, "height": height, "width": width})
    return images


class RandomProposals:
    """As many proposals as a trained RPN gives, after running the real one."""

    def __init__(self, rpn: Any) -> None:
        """Create a source that still runs `rpn`."""
        self.rpn = rpn

    def propose(self, inputs: list[dict[str, Any]], device: torch.device) -> list[Instances]:
        """Return 1000 boxes per image."""
        found = self.rpn.propose(inputs, device)
        for i, instances in enumerate(found):
            corners = torch.rand(1000, 2, device=device) * torch.tensor([900.0, 500.0], device=device)
            boxes = Boxes(torch.cat([corners, corners + 20 + torch.rand(1000, 2, device=device) * 250], dim=1))
            logits = torch.zeros(1000, device=device)
            found[i] = Instances(instances.image_size, proposal_boxes=boxes, objectness_logits=logits)
        return found


def time_steps(
    case: str, images: int, steps: int, *, amp: bool = False, size: tuple[int, int] = LARGEST, more: str = ""
) -> tuple[float, int]:
    """Return the seconds of the fastest training step of a case, and its peak memory in bytes.

    Args:
        case: of `CASES`.
        images: per step.
        steps: number of steps.
        amp: use float16 autocast, as SOLVER.AMP.ENABLED does.
        size: height and width of the images.
        more: overrides on top of the case's own.
    """
    config, overrides = CASES[case]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = [*overrides.split(), *more.split(), "MODEL.DEVICE", device]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cfg = load_config(config, options)
    dim, classes = cfg.MODEL.CLIP.TEXT_EMB_DIM, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    with tempfile.TemporaryDirectory() as folder:
        embeddings = Path(folder, "embeddings.pth")
        torch.save(torch.randn(classes, dim), embeddings)
        model = DetectorTrainer.build_model(
            load_config(config, [*options, "MODEL.CLIP.TEXT_EMB_PATH", str(embeddings)])
        )
    if hasattr(model, "proposal_source"):
        model.proposal_source = RandomProposals(model.proposal_source)
    optimizer = DetectorTrainer.build_optimizer(cfg, model)
    batch = make_images(images, classes, cfg.MODEL.MASK_ON, size)
    scaler = torch.amp.GradScaler(device, enabled=amp and device == "cuda")
    precision = torch.float16 if device == "cuda" else torch.bfloat16

    def step() -> None:
        with torch.autocast(device, precision, enabled=amp):
            losses = model.train()(batch)
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()

    with EventStorage():
        fastest = min(seconds_of(step, device) for _ in range(steps))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return fastest, torch.cuda.max_memory_allocated() if device == "cuda" else used


def measure(case: str, images: int, steps: int, queue: Any) -> None:
    """Put (seconds per step, bytes) of a case into `queue`."""
    queue.put(time_steps(case, images, steps))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--images", type=int, default=1, help="images a step")
    parser.add_argument("--steps", type=int, default=2, help="steps, of which the fastest counts")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for case in tqdm(args.cases or list(CASES), unit="case"):
        queue = context.Queue()
        process = context.Process(target=measure, args=(case, args.images, args.steps, queue))
        process.start()
        process.join()
        result = queue.get() if process.exitcode == 0 else (float("nan"), float("nan"))
        rows.append([case, args.images, result[0], result[1] / 2**30])
    print(tabulate(rows, headers=["case", "images", "s a step", "GiB"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
