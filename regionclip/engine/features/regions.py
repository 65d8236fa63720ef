"""The features of the regions of some images, and where regions come from beside the proposer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.data.user_boxes import ImageBoxes, check_boxes
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource

Features = dict[str, Tensor]
"""`boxes` float [N, 4], xyxy in pixels of the original, and `feats` float [N, D], not normalised;
with class embeddings also `classes` int64 [N], and `probs` float [N, K + 1], background last. Rows of
all entries belong to the same regions."""

Selection = Callable[[CLIPFastRCNN, Instances, Tensor], tuple[Boxes, Tensor, Features]]
"""From proposals and embeddings [R, D] to boxes [N, 4] in pixels of the network input, the row [N] of
the proposal that each belongs to, and further entries."""


class GivenBoxes:
    """Boxes that a user gives for each picture."""

    def __init__(self, boxes: dict[str, ImageBoxes]) -> None:
        """Make a source of boxes by the `name` of images, in pixels of the original pictures."""
        self.boxes = boxes

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the boxes of each image; raises `UserError` for bad ones."""
        proposals = []
        for image in inputs:
            height, width = image["image"].shape[1:]
            size, what = (image["height"], image["width"]), f"boxes of {image['file_name']}"
            boxes = Boxes(check_boxes(self.boxes[image["name"]], size, what))
            boxes.scale(width / image["width"], height / image["height"])
            proposals.append(Instances((height, width), proposal_boxes=boxes).to(device))
        return proposals


@torch.no_grad()
def region_features(
    model: CLIPFastRCNN, images: Sequence[ImageInput], source: ProposalSource, select: Selection
) -> list[Features]:
    """Return the features of each image.

    Args:
        model: in evaluation mode.
        images: mapped images, with `height` and `width` of the originals.
        source: gives the regions.
        select: decides which of them are kept, and what is said about each.
    """
    proposals = source.propose(images, model.device)
    embeddings = model.encode_regions(images, proposals)
    results = []
    for image, own, rows_of_image in zip(images, proposals, embeddings, strict=True):
        boxes, rows, entries = select(model, own, rows_of_image)
        boxes, kept = _to_original(boxes, own.image_size, image)
        features = {"boxes": boxes, **entries, "feats": rows_of_image[rows]}
        results.append({name: value[kept].cpu() for name, value in features.items()})
    return results


def every_region(model: CLIPFastRCNN, proposals: Instances, embeddings: Tensor) -> tuple[Boxes, Tensor, Features]:
    """Keep all regions, and say nothing about them."""
    return proposals.proposal_boxes, torch.arange(len(proposals), device=embeddings.device), {}


def best_word(model: CLIPFastRCNN, proposals: Instances, embeddings: Tensor) -> tuple[Boxes, Tensor, Features]:
    """Keep all regions, each with its most probable class."""
    logits, _ = model.roi_heads.box_predictor(embeddings)
    probabilities = logits.softmax(dim=1)
    boxes, rows, _ = every_region(model, proposals, embeddings)
    return boxes, rows, {"classes": probabilities[:, :-1].argmax(dim=1), "probs": probabilities}


def detections(model: CLIPFastRCNN, proposals: Instances, embeddings: Tensor) -> tuple[Boxes, Tensor, Features]:
    """Keep what the detector would report, as published: a region may come with several classes."""
    predictor = model.roi_heads.box_predictor
    predictions = predictor(embeddings)
    (found,), (rows,) = predictor.inference(predictions, [proposals])
    probabilities = predictions[0][rows].softmax(dim=1)
    return found.pred_boxes, rows, {"classes": found.pred_classes, "probs": probabilities}


def _to_original(boxes: Boxes, size: tuple[int, int], image: ImageInput) -> tuple[Tensor, Tensor]:
    """Return boxes [N, 4] in pixels of the original, clipped to it, and which of them have an area."""
    scaled = Boxes(boxes.tensor.clone())
    scaled.scale(image["width"] / size[1], image["height"] / size[0])
    scaled.clip((image["height"], image["width"]))
    return scaled.tensor, scaled.nonempty()
