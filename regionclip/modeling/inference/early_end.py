"""Early termination: encode regions chunk by chunk until no remaining region can change the detections.

A score is fused from a class probability, which is at most 1, and the objectness of the region, which the RPN gives
before any region is encoded. Once the requested number of detections survived suppression with higher scores than the
remaining regions can reach, those need not be encoded: in hard NMS a lower score never suppresses a higher one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from regionclip.modeling.detector import Selection
from regionclip.modeling.heads.region_encoder import REGIONS_AT_ONCE, EncodeBoxes
from regionclip.modeling.postprocess import Candidates, DetectionSelector, report_score
from regionclip.modeling.suppression import AcrossClasses, within_classes

MANY_CLASSES, CHUNKS_FOR_MANY = 4096, 4
"""Class embeddings too large for the CPU caches are read once for several chunks."""

Classify = Callable[[Tensor, Instances], tuple[Tensor, Tensor]]
"""Maps region embeddings [C, D] and proposals to boxes [C, 4] or [C, 4 * K] and probabilities [C, K + 1]."""


class LazyRegions:
    """Proposals of one image, encoded in chunks on first access."""

    def __init__(self, proposals: Instances, make_encoder: Callable[[int], EncodeBoxes]) -> None:
        """Store the proposals.

        Args:
            proposals: with `proposal_boxes` and, unless the score does not depend on it, `objectness_logits`.
            make_encoder: gets the number of proposals; called when the first chunk is encoded.
        """
        self.proposals = proposals
        self.objectness_logits = objectness_of(proposals)
        """float [R]; zeros if the proposals have none."""
        self._make_encoder: Callable[[int], EncodeBoxes] = make_encoder
        self._encode: EncodeBoxes | None = None
        self._chunks: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copying and pickling, without the encoder, which is created again when needed."""
        return {**self.__dict__, "_encode": None}

    def __len__(self) -> int:
        """Return the number of proposals R."""
        return len(self.proposals)

    @property
    def encoded(self) -> int:
        """Number of proposals encoded so far, a prefix of all."""
        return sum(map(len, self._chunks))

    @property
    def embeddings(self) -> Tensor:
        """Float [E, D], not normalized, of the proposals encoded so far."""
        return torch.cat(self._chunks)

    def chunks(self, count: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and embeddings [C, D], not normalized, of all proposals in order, at least once.

        Args:
            count: number of chunks, each encoded separately, that are yielded together.
        """
        starts = range(0, max(len(self), 1), REGIONS_AT_ONCE)
        for first in range(0, len(starts), count):
            numbers = range(first, min(first + count, len(starts)))
            embeddings = torch.cat([self._chunk(number) for number in numbers])
            yield slice(starts[first], starts[first] + len(embeddings)), embeddings

    def _chunk(self, number: int) -> Tensor:
        if number == len(self._chunks):
            start = number * REGIONS_AT_ONCE
            self._encode = self._encode or self._make_encoder(len(self))
            self._chunks.append(self._encode(self.proposals.proposal_boxes[start : start + REGIONS_AT_ONCE]))
            if self.encoded == len(self):
                self._encode = None  # it holds feature maps
        return self._chunks[number]


def detect_among(
    regions: LazyRegions, classify: Classify, classes: int, selector: DetectionSelector, *, lowest_score: float = 0.0
) -> tuple[Instances, Tensor]:
    """Return the selector's detections among all regions, encoding only as many chunks as needed.

    Args:
        regions: of one image, preferably in descending order of objectness.
        classify: called chunk by chunk.
        classes: number K of classes.
        selector: selects the detections.
        lowest_score: detections with a lower score are not needed, and may be missing.

    Returns:
        Detections, and int64 [M] with the row in `regions` of each.
    """
    image_size = regions.proposals.image_size
    limits = _largest_of_others(selector.largest_score(regions.objectness_logits))
    found: list[Candidates] = []
    highest: list[float] = []
    for rows, embeddings in regions.chunks(1 if classes < MANY_CLASSES else CHUNKS_FOR_MANY):
        boxes, probabilities = classify(embeddings, regions.proposals[rows])
        objectness = regions.objectness_logits[rows]
        found.append(selector.candidates(boxes, probabilities, objectness, image_size, rows.start))
        if rows.stop == len(regions):
            break
        scores = found[-1].scores
        highest.append(float(scores.max()) if len(scores) else -math.inf)
        other = limits[rows.stop]
        better = [part[part.scores > other] for part, best in zip(found, highest, strict=True) if best > other]
        unwanted = other < lowest_score and not selector.suppression.rescores
        if unwanted or selector.is_full(better):
            break
    return selector.select(Candidates.cat(found), image_size)


def detect_selected(
    regions: LazyRegions, classify: Classify, classes: int, selector: DetectionSelector, selection: Selection
) -> Instances:
    """Return the detections that `selection` asks for, with `embeddings` [M, D], not normalized.

    Other arguments are those of `detect_among`.
    """
    changes: dict[str, Any] = {}
    if selection.per_class is not None:
        each_class = within_classes(selector.suppression)
        changes["suppression"] = each_class if selection.per_class else AcrossClasses(each_class)
    threshold = selection.threshold
    if threshold is not None:
        changes["score_threshold"] = min(threshold, selector.score_threshold)
    if selection.topk is not None:
        changes["max_detections"] = selection.topk
    # The score used for selection may differ from the reported score, to which the user's threshold applies.
    lowest = (threshold or 0.0) if selector.reported_score is report_score else 0.0
    found, rows = detect_among(regions, classify, classes, replace(selector, **changes), lowest_score=lowest)
    found.embeddings = regions.embeddings[rows]
    return found[found.pred_boxes.nonempty() & (found.scores >= (threshold or 0.0))]


def objectness_of(proposals: Instances) -> Tensor:
    """Return the objectness logits [R] of proposals; zeros if they have none."""
    if proposals.has("objectness_logits"):
        return proposals.objectness_logits
    return proposals.proposal_boxes.tensor.new_zeros(len(proposals))


def _largest_of_others(largest: Tensor) -> list[float]:
    """Return the suffix maximum: for each row the largest value from it on."""
    return largest.flip(0).cummax(0).values.flip(0).tolist()
