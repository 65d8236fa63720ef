"""Training of the concept augmenter on stored region embeddings, without a detector (RALF, section 3.3)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.data.region_features.index import FeatureFolder
from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json
from regionclip.fingerprints import fingerprint, hash_tensors
from regionclip.modeling.retrieval_augmentation.augmenter import ConceptAugmenter
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)

WEIGHTS_FILE, STATE_FILE, METRICS_FILE = "augmenter.pth", "training.pth", "metrics.json"
"""Files in the output folder: bare weights as published, what an interrupted run goes on with, and metrics."""

SECONDS_BETWEEN_STATES = 60.0

REGIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class RegionFilter:
    """Which stored regions are trained on, as published."""

    min_objectness: float = 0.4
    min_side: float = 10.0
    """Width and height in pixels of the image exceed it."""
    per_image: int = 30
    """The first ones in the order of the file."""


@dataclass(frozen=True)
class AugmenterSettings:
    """Optimization, as published: SGD without momentum, decay or schedule."""

    epochs: int = 10
    images_per_batch: int = 128
    learning_rate: float = 0.1
    weight_class: float = 5.0
    """Of the cross entropy (stren_cls)."""
    weight_region: float = 1.0
    """Of the distance to the region embedding (stren_reg)."""
    concepts: int = 50
    """Concepts that are retrieved for a region (topk_concept)."""
    held_out: float = 0.02
    """Fraction of the images that are not trained on, for the metrics."""
    seed: int = 0
    regions: RegionFilter = field(default_factory=RegionFilter)


@dataclass(frozen=True)
class StoredRegions:
    """Region embeddings of many images."""

    embeddings: Tensor
    """float16 [R, D]."""
    counts: tuple[int, ...]
    """Regions of each image."""

    def of_images(self, images: Tensor) -> Tensor:
        """Return the unit embeddings, float [N, D], of the regions of images int64 [M]."""
        ends = torch.tensor(self.counts).cumsum(0)
        rows = [torch.arange(int(ends[i]) - self.counts[i], int(ends[i])) for i in images.tolist()]
        return F.normalize(self.embeddings[torch.cat(rows)].float(), dim=1)


def read_regions(folder: FeatureFolder, chosen: RegionFilter) -> StoredRegions:
    """Read the regions of a folder that the filter keeps.

    Raises:
        UserError: no embeddings or objectness in the folder, or nothing that the filter keeps.
    """
    what, parts, counts = f"--regions {folder.folder}", [], []
    for features in progress_bar(folder.values(), unit="image", total=len(folder), description="regions"):
        if not {"feats", "objectness"} <= features.keys():
            fix = "write it with regionclip features --objectness"
            raise user_error(what, "embeddings and objectness of regions", ", ".join(features), fix)
        sides = features["boxes"][:, 2:] - features["boxes"][:, :2]
        kept = (features["objectness"] > chosen.min_objectness) & (sides > chosen.min_side).all(dim=1)
        rows = kept.nonzero()[: chosen.per_image, 0]
        if len(rows):
            parts.append(features["feats"][rows].half())
            counts.append(len(rows))
    if not parts:
        expected = (
            f"regions with an objectness above {chosen.min_objectness} and sides above {chosen.min_side:g} pixels"
        )
        raise user_error(what, expected, "none", "lower --min-objectness or --min-side")
    return StoredRegions(torch.cat(parts), tuple(counts))


def augmenter_losses(
    augmented: Tensor, regions: Tensor, classes: Tensor, labels: Tensor, settings: AugmenterSettings
) -> tuple[Tensor, Tensor]:
    """Return the weighted losses of augmented embeddings: of their classes, and of the distance to the regions.

    Args:
        augmented: unit embeddings [R, D].
        regions: unit embeddings [R, D] that were augmented.
        classes: unit text embeddings [K, D].
        labels: int64 [R], rows of `classes`.
        settings: weights.
    """
    of_class = F.cross_entropy(augmented @ classes.T, labels)  # cosines without temperature, as published
    return settings.weight_class * of_class, settings.weight_region * F.mse_loss(augmented, regions)


class AugmenterTraining:
    """A training that is saved regularly, and goes on with the same bits."""

    def __init__(
        self,
        regions: StoredRegions,
        concepts: Tensor,
        classes: Tensor,
        settings: AugmenterSettings,
        output: Path,
        device: str = "cpu",
    ) -> None:
        """Prepare a training, or the rest of one that was interrupted.

        Args:
            regions: to train on.
            concepts: embeddings [N, D], not normalized.
            classes: text embeddings [K, D] of the pseudo labels, not normalized.
            settings: of the optimization.
            output: folder, of this training or empty.
            device: where to train.

        Raises:
            UserError: other widths, too few concepts, or a folder of another training.
        """
        dim = regions.embeddings.shape[1]
        _require_fitting(dim, concepts, classes, settings)
        self.regions, self.settings, self.output = regions, settings, output
        self.device = torch.device(device)
        self.concepts, self.classes = (F.normalize(part.float(), dim=1).to(device) for part in (concepts, classes))
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = ConceptAugmenter(dim, settings.concepts).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), settings.learning_rate)
        self.step, self.losses = 0, [0.0, 0.0]
        inputs = [str(asdict(settings)), hash_tensors([{"r": regions.embeddings, "c": concepts, "k": classes}])]
        self._fingerprint = fingerprint([*inputs, str(regions.counts)])
        order = torch.randperm(len(regions.counts), generator=torch.Generator().manual_seed(settings.seed))
        held_out = math.ceil(len(order) * settings.held_out) if len(order) > 1 else 0
        self.held_out, self.trained = order[:held_out], order[held_out:]
        self._resume()

    @property
    def steps_of_epoch(self) -> int:
        """Number of batches of an epoch."""
        return math.ceil(len(self.trained) / self.settings.images_per_batch)

    @property
    def steps(self) -> int:
        """Number of batches in all."""
        return self.settings.epochs * self.steps_of_epoch

    def run(self) -> dict[str, float]:
        """Train to the end, write the weights, and return the metrics."""
        saved = time.monotonic()
        with progress_bar(total=self.steps, unit="step", description="augmenter", initial=self.step) as progress:
            while self.step < self.steps:
                self._train_step()
                progress.set_postfix(loss=f"{sum(self.losses):.3f}", refresh=False)
                progress.update()
                if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                    self._save()
                    saved = time.monotonic()
        metrics = self.evaluate(self.held_out if len(self.held_out) else self.trained)
        with atomic_write(self.output / WEIGHTS_FILE) as file:
            torch.save({key: value.cpu() for key, value in self.model.state_dict().items()}, file)
        write_json(self.output / METRICS_FILE, metrics)
        self._save()
        return metrics

    def _batch(self, step: int) -> Tensor:
        epoch, number = divmod(step, self.steps_of_epoch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch + 1)
        order = self.trained[torch.randperm(len(self.trained), generator=generator)]
        return order.split(self.settings.images_per_batch)[number]

    def _train_step(self) -> None:
        regions = self.regions.of_images(self._batch(self.step)).to(self.device)
        labels = (regions @ self.classes.T).argmax(dim=1)
        self.model.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed * 1_000_003 + self.step)  # of dropout
            augmented = self.model(regions, self.concepts)
        losses = augmenter_losses(augmented, regions, self.classes, labels, self.settings)
        if not all(bool(torch.isfinite(loss)) for loss in losses):
            actual, fix = f"{float(sum(losses)):g} at step {self.step}", "lower --lr"
            raise user_error("loss of the augmenter", "a finite number", actual, fix)
        self.optimizer.zero_grad()
        sum(losses, regions.new_zeros(())).backward()
        self.optimizer.step()
        self.losses = [float(loss.detach()) for loss in losses]
        self.step += 1

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Return how the augmenter changes the regions of images int64 [M].

        `label_kept` is the fraction whose most similar class is still the pseudo label; `cosine_label_before` and
        `_after` are mean cosines with its text embedding, and `cosine_region` with the region embedding.
        """
        self.model.eval()
        rows = self.regions.of_images(images)
        sums = torch.zeros(4, dtype=torch.float64)
        for part in rows.split(REGIONS_AT_ONCE):
            regions = part.to(self.device)
            augmented = self.model(regions, self.concepts)
            cosines, after = regions @ self.classes.T, augmented @ self.classes.T
            labels = cosines.argmax(dim=1, keepdim=True)
            values = [after.argmax(dim=1, keepdim=True) == labels, cosines.gather(1, labels), after.gather(1, labels)]
            values.append((regions * augmented).sum(dim=1))
            sums += torch.stack([value.double().sum() for value in values]).cpu()
        names = ("label_kept", "cosine_label_before", "cosine_label_after", "cosine_region")
        return {**dict(zip(names, (sums / len(rows)).tolist(), strict=True)), "regions": len(rows)}

    def _save(self) -> None:
        content = {"fingerprint": self._fingerprint, "step": self.step, "model": self.model.state_dict()}
        with atomic_write(self.output / STATE_FILE) as file:
            torch.save(content, file)

    def _resume(self) -> None:
        path = self.output / STATE_FILE
        if not path.is_file():
            return
        fix = "name another folder, or remove this one"
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            known = {key: content[key] for key in ("fingerprint", "step", "model")}
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            raise user_error(str(path), "the state of a training", f"unreadable ({reason})", fix) from error
        if known["fingerprint"] != self._fingerprint:
            expected = "the training of these inputs and settings"
            raise user_error(f"--output {self.output}", expected, "one of others", fix)
        self.model.load_state_dict(known["model"])
        self.step = known["step"]
        logger.info("Going on at step %d of %d", self.step, self.steps)


def _require_fitting(dim: int, concepts: Tensor, classes: Tensor, settings: AugmenterSettings) -> None:
    widths: Sequence[tuple[str, Tensor]] = (("--concepts", concepts), ("--classes", classes))
    for option, table in widths:
        if table.shape[1] != dim:
            actual, fix = f"width {table.shape[1]}", "embed them with the CLIP of the regions"
            raise user_error(option, f"width {dim}, of the region embeddings", actual, fix)
    if len(concepts) < settings.concepts:
        expected, fix = f"at least {settings.concepts} concepts", "add concepts, or lower --topk-concept"
        raise user_error("--concepts", expected, str(len(concepts)), fix)
