"""Detection on regions that are encoded chunk by chunk, until no other can change the detections.

A score is fused from a class probability, which is at most 1, and the objectness of the region, which the RPN knows
before anything is encoded. Once as many detections as are wanted survived suppression with better scores than the
remaining regions can have, these need not be encoded: hard suppression never lets a lower score remove a higher one.
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
from regionclip.modeling.postprocess import AcrossClasses, Candidates, DetectionSelector, report_score

MANY_CLASSES, CHUNKS_FOR_MANY = 4096, 4
"""Class embeddings that no cache holds are read once for several chunks."""

Classify = Callable[[Tensor, Instances], tuple[Tensor, Tensor]]
"""From region embeddings [C, D] and their proposals to boxes [C, 4] or [C, 4 * K] and probabilities [C, K + 1]."""


class LazyRegions:
    """The proposals of one image; a chunk of them is encoded when it is first asked for."""

    def __init__(self, proposals: Instances, make_encoder: Callable[[int], EncodeBoxes]) -> None:
        """Take proposals.

        Args:
            proposals: with `proposal_boxes` and, unless their score does not depend on it, `objectness_logits`.
            make_encoder: is told the number of proposals, and called when the first of them is encoded.
        """
        self.proposals = proposals
        self.objectness_logits = objectness_of(proposals)
        """float [R]; zeros where the proposals have none."""
        self._make_encoder: Callable[[int], EncodeBoxes] = make_encoder
        self._encode: EncodeBoxes | None = None
        self._chunks: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle needs: what encodes is made again from the feature maps."""
        return {**self.__dict__, "_encode": None}

    def __len__(self) -> int:
        """Return the number of proposals R."""
        return len(self.proposals)

    @property
    def encoded(self) -> int:
        """Number of the proposals that were encoded until now, the first ones."""
        return sum(map(len, self._chunks))

    @property
    def embeddings(self) -> Tensor:
        """Float [E, D], not normalized, of the proposals that were encoded until now."""
        return torch.cat(self._chunks)

    def chunks(self, count: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and embeddings [C, D], not normalized, of all proposals in their order, at least once.

        Args:
            count: of chunks that are encoded one after the other and come together.
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
    """Return what `selector` chooses of all regions, having encoded no more chunks of them than that takes.

    Args:
        regions: of one image, best if in descending order of objectness.
        classify: is asked chunk by chunk.
        classes: their number K.
        selector: chooses the detections.
        lowest_score: detections with a score below are not wanted, and can be missing.

    Returns:
        Detections, and int64 [M] the row in `regions` of each.
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
    """Return the detections that are wanted, with their `embeddings` [M, D], not normalized.

    Arguments are those of `detect_among`.
    """
    changes: dict[str, Any] = {} if selection.per_class else {"suppression": AcrossClasses(selector.suppression)}
    threshold = selection.threshold
    if threshold is not None:
        changes["score_threshold"] = min(threshold, selector.score_threshold)
    if selection.topk is not None:
        changes["max_detections"] = selection.topk
    # The score that selects may be another than the reported one, which is what the user limits.
    lowest = (threshold or 0.0) if selector.reported_score is report_score else 0.0
    found, rows = detect_among(regions, classify, classes, replace(selector, **changes), lowest_score=lowest)
    found.embeddings = regions.embeddings[rows]
    return found[found.pred_boxes.nonempty() & (found.scores >= (threshold or 0.0))]


def objectness_of(proposals: Instances) -> Tensor:
    """Return the objectness logits [R] of proposals; zeros where they have none."""
    if proposals.has("objectness_logits"):
        return proposals.objectness_logits
    return proposals.proposal_boxes.tensor.new_zeros(len(proposals))


def _largest_of_others(largest: Tensor) -> list[float]:
    """Return for each row the largest value from it on."""
    return largest.flip(0).cummax(0).values.flip(0).tolist()
