#!/usr/bin/env python3
"""Measure image-text pairs per second of the data loader and of a pretraining step.

    python benchmarks/pretrain_data.py [--captions FILE --format FACTORY] [--workers N] [--step]

Without captions, the four test photos are written to tar shards at 640 pixels. The step is that of
configs/pretrain/RegionCLIP_RN50.yaml, with random weights, on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from PIL import Image
from tqdm import tqdm

from regionclip.config.loading import load_config
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import write_shards
from regionclip.data.training_loader import Batch, read_training_data, training_batches
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.files import REPOSITORY

CONFIG = "configs/pretrain/RegionCLIP_RN50.yaml"
RPN_CONFIG = "configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


def large_photos(count: int) -> Iterator[Pair]:
    """Yield pairs of COCO's usual size."""
    photos = sorted((REPOSITORY / "tests/data/four_photos/images").iterdir())
    for i in range(count):
        encoded = io.BytesIO()
        Image.open(photos[i % 4]).resize((640, 480)).save(encoded, "JPEG", quality=90)
        yield Pair(str(i), encoded.getvalue(), "a photo of something")


def rate_of_loader(batches: Iterator[Batch], count: int) -> float:
    """Return pairs per second, after the workers have started."""
    next(batches)
    start = time.perf_counter()
    with tqdm(total=count, desc="loader", unit="pair") as bar:
        while bar.n < count:
            bar.update(len(next(batches)))
    return bar.n / (time.perf_counter() - start)


def rate_of_step(cfg: CfgNode, batch: Batch) -> float:
    """Return the pairs per second of a training step."""
    model = DetectorTrainer.build_model(cfg).train()
    seconds = []
    with EventStorage():
        for _ in tqdm(range(2), desc="step", unit="step"):
            start = time.perf_counter()
            sum(model(batch).values()).backward()
            if cfg.MODEL.DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", help="image-text pairs")
    parser.add_argument("--format", default="COCOCaptions", help="of --captions")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=400, help="pairs to load")
    parser.add_argument("--step", action="store_true", help="also time the step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, factory = args.captions, args.format
        if not path:
            write_shards(large_photos(200), Path(folder, "shards"), 50)
            path, factory = f"{folder}/shards", "ImageTextShards"
        embeddings = Path(folder, "concepts.pth")
        torch.save(torch.randn(4764, 1024), embeddings)
        options = ["MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu", "SOLVER.IMS_PER_BATCH", "2"]
        options += ["DATASETS.PATH_TRAIN", f"('{path}',)", "DATASETS.FACTORY_TRAIN", f"('{factory}',)"]
        options += ["MODEL.CLIP.OFFLINE_RPN_CONFIG", RPN_CONFIG, "MODEL.CLIP.CONCEPT_POOL_EMB", str(embeddings)]
        cfg = load_config(CONFIG, [*options, "DATALOADER.NUM_WORKERS", str(args.workers)])
        batches = training_batches(cfg, read_training_data(cfg), seed=0)
        loaded = rate_of_loader(batches, args.count)
        print(f"loader: {loaded:.1f} pairs/s, decoded, resized to 800, {args.workers} workers")
        if args.step:
            consumed = rate_of_step(cfg, next(batches))
            print(f"step:   {consumed:.3f} pairs/s on {cfg.MODEL.DEVICE}: the loader gives {loaded / consumed:.0f} x")


if __name__ == "__main__":
    main()
