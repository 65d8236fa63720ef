"""Linear probing on features that are computed once: images are not augmented, and their regions are sampled once.

The published training (stage `probe`) runs the frozen detector again in each of 12 epochs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regionclip.data.test_loader import TestMapper
from regionclip.files import atomic_write
from regionclip.methods.lp_ovod.detector import LPOVOD
from regionclip.methods.lp_ovod.stages import LinearProbing
from regionclip.modeling.losses.classification import sigmoid_focal
from regionclip.progress import progress_bar
from regionclip.records import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeSettings:
    """Optimization of linear probing, as published."""

    epochs: int = 12
    milestones: tuple[int, ...] = (8, 11)
    """Epochs after which the learning rate is a tenth."""
    images_per_batch: int = 2
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 2.5e-5
    warmup: int = 20
    """Iterations in which the learning rate grows linearly from a tenth."""
    seed: int = 0


@dataclass(frozen=True)
class ImageRegions:
    """Sampled regions of an image."""

    features: Tensor
    """float [R, C]."""
    labels: Tensor
    """int64 [R], classes; their number is background."""


def region_features(model: LPOVOD, records: Sequence[Record], mapper: TestMapper, folder: Path) -> list[ImageRegions]:
    """Return the sampled regions of images with annotations, computing those that `folder` lacks.

    Args:
        model: of stage `probe`; its labels are the rows of its novel prototypes.
        records: with `annotations`.
        mapper: keeps annotations.
        folder: a file for each image, so that an interrupted run goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = LinearProbing()
    model.train()
    found = []
    for number, record in enumerate(progress_bar(records, unit="image", description="features")):
        path = folder / f"{number:06}.safetensors"
        known = _read(path)
        if known is None:
            image = mapper(record)
            if "error" in image:
                logger.error("Skipped image %s", image["error"])
                continue
            with EventStorage():
                features, labels = stage.features(model, [{**image, "seed": number}])
            known = {"features": features.float().cpu(), "labels": labels.cpu()}
            with atomic_write(path) as file:
                file.write(save(known))
        found.append(ImageRegions(known["features"], known["labels"]))
    model.eval()
    return found


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def probe(images: Sequence[ImageRegions], classes: int, settings: ProbeSettings) -> Tensor:
    """Return the prototypes [classes, C], which start as zeros.

    Args:
        images: in any order; each epoch shuffles them.
        classes: number of classes.
        settings: of the optimization.
    """
    weights = torch.zeros(classes, images[0].features.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD(
        [weights], settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(settings.seed)
    done = 0
    for epoch in progress_bar(range(settings.epochs), unit="epoch", description="probing"):
        decay = 0.1 ** sum(epoch >= milestone for milestone in settings.milestones)
        for numbers in torch.randperm(len(images), generator=generator).split(settings.images_per_batch):
            batch = [images[number] for number in numbers.tolist()]
            warm = min(1.0, 0.1 + 0.9 * done / settings.warmup) if settings.warmup else 1.0
            optimizer.param_groups[0]["lr"] = settings.learning_rate * decay * warm
            logits = torch.cat([part.features for part in batch]) @ weights.T
            optimizer.zero_grad()
            sigmoid_focal(logits, torch.cat([part.labels for part in batch])).backward()
            optimizer.step()
            done += 1
    return weights.detach()
