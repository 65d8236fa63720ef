"""Region features of a batch of images, and region sources other than the RPN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.data.region_features.formats import Features
from regionclip.errors import user_error
from regionclip.modeling.detector import ImageEncoding, OpenVocabularyDetector, Selection
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource

Choice = Callable[[OpenVocabularyDetector, ImageEncoding, Instances], tuple[Boxes, Tensor, Features]]
"""Maps a detector, an image and its regions to boxes [N, 4] in pixels of the network input, their embeddings [N, D],
and further entries."""


@torch.no_grad()
def region_features(
    model: OpenVocabularyDetector, images: Sequence[ImageInput], choose: Choice, source: ProposalSource | None = None
) -> list[Features]:
    """Return the features of each image.

    Args:
        model: in evaluation mode.
        images: mapped images, with `height` and `width` of the originals.
        choose: selects regions, and adds further entries.
        source: of the regions; None takes the detector's own proposals.
    """
    results = []
    encodings = model.encode_images(images, proposals=source is None)
    given = None if source is None else source.propose(images, model.device)
    for number, (image, encoding) in enumerate(zip(images, encodings, strict=True)):
        regions = encoding.proposals if given is None else given[number]
        boxes, embeddings, entries = choose(model, encoding, regions)
        boxes, kept = _to_original(boxes, regions.image_size, image)
        features = {"boxes": boxes, **entries, "feats": embeddings[:, : model.text_space.dim]}
        results.append({name: value[kept].cpu() for name, value in features.items()})
    return results


def every_region(
    model: OpenVocabularyDetector, encoding: ImageEncoding, regions: Instances
) -> tuple[Boxes, Tensor, Features]:
    """Keep all regions, without further entries."""
    return regions.proposal_boxes, model.embed_regions(encoding, regions.proposal_boxes), {}


def with_objectness(choice: Choice, minimum: float = 0.0) -> Choice:
    """Return a choice that keeps all proposals with at least a minimum of objectness, in [0, 1], and adds it."""

    def choose(
        model: OpenVocabularyDetector, encoding: ImageEncoding, regions: Instances
    ) -> tuple[Boxes, Tensor, Features]:
        if not regions.has("objectness_logits"):
            raise user_error("--objectness", "proposals with an objectness", "none", "leave it out, or name others")
        kept = regions[regions.objectness_logits.sigmoid() >= minimum] if minimum > 0 else regions
        boxes, embeddings, entries = choice(model, encoding, kept)
        return boxes, embeddings, {"objectness": kept.objectness_logits.sigmoid(), **entries}

    return choose


def best_class(
    model: OpenVocabularyDetector, encoding: ImageEncoding, regions: Instances
) -> tuple[Boxes, Tensor, Features]:
    """Keep all regions, each with its most probable class."""
    boxes, embeddings, _ = every_region(model, encoding, regions)
    probabilities = model.probabilities(embeddings, None)
    return boxes, embeddings, {"classes": probabilities[:, :-1].argmax(dim=1), "probs": probabilities}


def detections(
    model: OpenVocabularyDetector, encoding: ImageEncoding, regions: Instances
) -> tuple[Boxes, Tensor, Features]:
    """Keep the detector's detections, as published: a region may have several classes."""
    found = model.detect(encoding, None, Selection())
    entries = {"classes": found.pred_classes, "probs": model.probabilities(found.embeddings, None)}
    return found.pred_boxes, found.embeddings, entries


def _to_original(boxes: Boxes, size: tuple[int, int], image: ImageInput) -> tuple[Tensor, Tensor]:
    """Return boxes [N, 4] in pixels of the original, clipped to it, and which of them have an area."""
    scaled = Boxes(boxes.tensor.clone())
    scaled.scale(image["width"] / size[1], image["height"] / size[0])
    scaled.clip((image["height"], image["width"]))
    return scaled.tensor, scaled.nonempty()
