"""RAF: region embeddings augmented by concepts, which re-weight class probabilities (RALF, section 3.3).

They do not depend on class names, so they follow the columns of a region embedding, computed once for an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.crops import CROPS_AT_ONCE
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.image_encoders.clip_vit import build_image_encoder
from regionclip.clip.padded_crops import PixelMode, whole_pixels
from regionclip.clip.prompts import PROMPT_ENSEMBLES
from regionclip.modeling.detector import Classifier
from regionclip.modeling.heads.region_encoder import EncodeBoxes
from regionclip.modeling.inference.early_end import Classify
from regionclip.modeling.retrieval_augmentation.augmenter import ConceptAugmenter
from regionclip.modeling.retrieval_augmentation.fusion import CosineFusion, keep_largest

Refine = Callable[[Tensor, Boxes], Tensor]
"""Maps region embeddings [R, E] and the boxes that they are of to boxes [R, 4], xyxy in pixels of the network input."""

TEMPLATES = "raf"
"""Templates of class names, as of the labels that an augmenter is trained with."""


class RegionEmbedding(Protocol):
    """What an augmenter sees of a region."""

    def __call__(self, image: Tensor, boxes: Tensor, own: Tensor) -> Tensor:
        """Return unit embeddings [R, D].

        Args:
            image: uint8 [3, H, W], the network input of the detector.
            boxes: float [R, 4], xyxy in its pixels.
            own: region embeddings [R, E] of the detector.
        """
        ...


class OwnEmbeddings:
    """The region embeddings of the detector itself: no second CLIP is needed."""

    def __init__(self, dim: int) -> None:
        """Take the first `dim` columns."""
        self.dim = dim

    def __call__(self, image: Tensor, boxes: Tensor, own: Tensor) -> Tensor:
        """Return unit embeddings [R, D]; see `RegionEmbedding`."""
        return F.normalize(own[:, : self.dim].float(), dim=1)


class CropEmbeddings(nn.Module):
    """A CLIP that sees each region as an image of its own, as published."""

    def __init__(self, architecture: CLIPArchitecture, pixels: PixelMode, text_encoder: nn.Module | None) -> None:
        """Create the image encoder of a CLIP size, and keep its text encoder if class names are to be embedded."""
        super().__init__()
        self.backbone = build_image_encoder(architecture)
        self.lang_encoder = text_encoder
        self.architecture, self.pixels = architecture, pixels

    def forward(self, image: Tensor, boxes: Tensor, own: Tensor) -> Tensor:
        """Return unit embeddings [R, D]; see `RegionEmbedding`."""
        side, size = self.architecture.image_resolution, (image.shape[1], image.shape[2])
        image, pixels = image.to(own.device), whole_pixels(boxes, size)
        embedded = [
            self.backbone.embed_images(self.pixels(image, part, side)).float() for part in pixels.split(CROPS_AT_ONCE)
        ]
        return F.normalize(torch.cat(embedded), dim=1)


class ClassCosines(Protocol):
    """Cosines of augmented embeddings and class names."""

    def __call__(self, features: Tensor, classifier: Classifier) -> Tensor:
        """Return cosines [R, K] of unit vectors [R, D] with the K classes of a classifier."""
        ...


def own_class_cosines(features: Tensor, classifier: Classifier) -> Tensor:
    """Return cosines [R, K] with the class embeddings of the detector, which are of the same CLIP."""
    return classifier(features)[:, : classifier.classes]


class NamedClassCosines:
    """Cosines with class names that the text encoder of the second CLIP embeds."""

    def __init__(self, crops: CropEmbeddings) -> None:
        """Use the text encoder of a CLIP on crops."""
        self._crops = crops
        self._known: tuple[tuple[str, ...], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copying and pickling, without the embeddings, which are computed again when needed."""
        return {**self.__dict__, "_known": None}

    def __call__(self, features: Tensor, classifier: Classifier) -> Tensor:
        """Return cosines [R, K] of unit vectors [R, D] with the K classes of a classifier."""
        names = tuple(classifier.names)
        if self._known is None or self._known[0] != names:
            self._known = names, self._embed(names)
        return features @ self._known[1].to(features.device).T

    def _embed(self, names: Sequence[str]) -> Tensor:
        encoder = self._crops.lang_encoder
        assert encoder is not None
        device = next(encoder.parameters()).device
        embedder = NameEmbedder(encoder, self._crops.architecture.name, device)  # type: ignore[arg-type]
        return F.normalize(embedder.embed(names, PROMPT_ENSEMBLES[TEMPLATES]), dim=1)


class RegionAugmentation(Protocol):
    """Adds columns to region embeddings, and re-weights probabilities by them."""

    @property
    def dim(self) -> int:
        """Number of columns."""
        ...

    def encoder(
        self, make_encoder: Callable[[int], EncodeBoxes], image: Tensor, refine: Refine, regions: int
    ) -> EncodeBoxes:
        """Return an encoder of boxes [C, E + D], from what makes that of the detector for a number of regions."""
        ...

    def append(self, own: Tensor, image: Tensor, boxes: Boxes, refine: Refine) -> Tensor:
        """Return region embeddings [R, E + D] of the detector's own [R, E]."""
        ...

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the detector's own columns [R, E] and the added ones [R, D]."""
        ...

    def classify(self, classify: Classify, classifier: Classifier, background: Tensor | None = None) -> Classify:
        """Return a classification with re-weighted probabilities; arguments as for `fuse`."""
        ...

    def fuse(
        self, probabilities: Tensor, features: Tensor, classifier: Classifier, background: Tensor | None = None
    ) -> Tensor:
        """Return re-weighted probabilities.

        Args:
            probabilities: float [R, K + 1], background last.
            features: the added columns [R, D].
            classifier: of the K classes.
            background: unit embedding [D] of background; None has cosine 0.
        """
        ...


class NoAugmentation:
    """Region embeddings as they are."""

    dim = 0

    def encoder(
        self, make_encoder: Callable[[int], EncodeBoxes], image: Tensor, refine: Refine, regions: int
    ) -> EncodeBoxes:
        """Return the detector's encoder."""
        return make_encoder(regions)

    def append(self, own: Tensor, image: Tensor, boxes: Boxes, refine: Refine) -> Tensor:
        """Return the region embeddings."""
        return own

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return all columns, and none."""
        return embeddings, embeddings[:, :0]

    def classify(self, classify: Classify, classifier: Classifier, background: Tensor | None = None) -> Classify:
        """Return the classification."""
        return classify

    def fuse(
        self, probabilities: Tensor, features: Tensor, classifier: Classifier, background: Tensor | None = None
    ) -> Tensor:
        """Return the probabilities."""
        return probabilities


class RetrievalAugmentedFeatures(nn.Module):
    """Region embeddings augmented by retrieved concepts, compared with class names."""

    concepts: Tensor

    def __init__(
        self,
        augmenter: ConceptAugmenter,
        concepts: Tensor,
        regions: RegionEmbedding,
        cosines: ClassCosines,
        fusion: CosineFusion,
        topk: int,
        *,
        refined: bool,
    ) -> None:
        """Create the features.

        Args:
            augmenter: trained in the space of `regions`.
            concepts: float [N, D], not normalized.
            regions: embeds regions.
            cosines: of augmented embeddings and classes.
            fusion: of probabilities and cosines.
            topk: number of classes of a region, background among them, whose cosines are kept.
            refined: embed the refined boxes; else the proposals.
        """
        super().__init__()
        self.augmenter = augmenter.requires_grad_(False)
        self.register_buffer("concepts", F.normalize(concepts.float(), dim=1), persistent=False)
        self.clip = regions.requires_grad_(False) if isinstance(regions, nn.Module) else None
        self._regions, self._cosines = (None if self.clip is not None else regions), cosines
        self._fusion, self._topk, self._refined = fusion, topk, refined
        self.eval()

    @property
    def dim(self) -> int:
        """Width D of the augmented embeddings."""
        return self.augmenter.dim

    def train(self, mode: bool = True) -> RetrievalAugmentedFeatures:
        """Stay in evaluation mode: RAF is trained without a detector."""
        return super().train(False)

    def encoder(
        self, make_encoder: Callable[[int], EncodeBoxes], image: Tensor, refine: Refine, regions: int
    ) -> EncodeBoxes:
        """Return an encoder of boxes; see `RegionAugmentation`."""
        encode = make_encoder(regions)
        return lambda boxes: self.append(encode(boxes), image, boxes, refine)

    @torch.no_grad()
    def append(self, own: Tensor, image: Tensor, boxes: Boxes, refine: Refine) -> Tensor:
        """Return region embeddings [R, E + D] of the detector's own [R, E]."""
        if not len(boxes):
            return torch.cat([own, own.new_zeros(0, self.dim)], dim=1)
        seen = refine(own, boxes) if self._refined else boxes.tensor
        embed = self.clip if self._regions is None else self._regions
        assert embed is not None
        return torch.cat([own, self.augmenter(embed(image, seen, own), self.concepts).to(own.dtype)], dim=1)

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the detector's own columns [R, E] and the augmented embeddings [R, D]."""
        own, features = embeddings.split([embeddings.shape[1] - self.dim, self.dim], dim=1)
        return own, features

    def classify(self, classify: Classify, classifier: Classifier, background: Tensor | None = None) -> Classify:
        """Return a classification with re-weighted probabilities; arguments as for `fuse`."""

        def classify_augmented(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            own, features = self.split(embeddings)
            boxes, probabilities = classify(own, proposals)
            return boxes, self.fuse(probabilities, features, classifier, background)

        return classify_augmented

    def fuse(
        self, probabilities: Tensor, features: Tensor, classifier: Classifier, background: Tensor | None = None
    ) -> Tensor:
        """Return re-weighted probabilities; see `RegionAugmentation`."""
        cosines = self._cosines(features, classifier)
        last = cosines.new_zeros(len(cosines)) if background is None else features @ background
        kept = keep_largest(torch.cat([cosines, last[:, None]], dim=1), self._topk)
        return self._fusion(probabilities, kept)
