"""Detections from boxes and class probabilities: score fusion, suppression, top-k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.modeling.score_scale import OddsOfSquare, SameScores, ScoreScale
from regionclip.modeling.suppression import Suppression, build_suppression

SLACK = 1e-4
"""Relative margin below a probability bound, so that rounding loses no candidate."""


class ScoreFusion(Protocol):
    """Fuses class probabilities with objectness; the score increases with the probability."""

    @property
    def scale(self) -> ScoreScale:
        """How users see the scores."""
        ...

    def __call__(self, probabilities: Tensor, objectness_logits: Tensor) -> Tensor:
        """Return the scores; both arguments have the same shape."""
        ...

    def scorable(self, objectness_logits: Tensor) -> Tensor:
        """Return bool [R]: regions that can have a score at all."""
        ...

    def min_probability(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return [R], for each scorable region a probability >= 0 below which its score is less than `score`."""
        ...


class ProbabilityOnly:
    """Score of a detection by its class probability only."""

    scale: ScoreScale = SameScores()

    def __call__(self, probabilities: Tensor, objectness_logits: Tensor) -> Tensor:
        """Return the probabilities."""
        return probabilities

    def scorable(self, objectness_logits: Tensor) -> Tensor:
        """Return all true."""
        return torch.ones_like(objectness_logits, dtype=torch.bool)

    def min_probability(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return the score."""
        return torch.full_like(objectness_logits, score)


class GeometricMeanWithLogit:
    """Upstream's sqrt(p * logit): it can exceed 1, and a negative logit gives NaN, which drops the region."""

    scale: ScoreScale = OddsOfSquare()

    def __call__(self, probabilities: Tensor, objectness_logits: Tensor) -> Tensor:
        """Return the scores."""
        return (probabilities * objectness_logits) ** 0.5

    def scorable(self, objectness_logits: Tensor) -> Tensor:
        """Return where logits are finite and not negative."""
        return torch.isfinite(objectness_logits) & (objectness_logits >= 0)

    def min_probability(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return the probability whose geometric mean with the logit is the score."""
        return score**2 / objectness_logits.abs() * (1 - SLACK)  # abs() for -0.0 only


class GeometricMeanWithSigmoid:
    """sqrt(p * sigmoid(logit)): at most 1, and no proposal is dropped."""

    scale: ScoreScale = SameScores()

    def __call__(self, probabilities: Tensor, objectness_logits: Tensor) -> Tensor:
        """Return the scores."""
        return (probabilities * objectness_logits.sigmoid()) ** 0.5

    def scorable(self, objectness_logits: Tensor) -> Tensor:
        """Return where logits are not NaN."""
        return ~torch.isnan(objectness_logits)

    def min_probability(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return the probability whose geometric mean with the objectness is the score."""
        return score**2 / objectness_logits.sigmoid() * (1 - SLACK)


@dataclass(frozen=True)
class ProbabilityTimesObjectness:
    """p * sigmoid(logit) ** power: class and object are independent."""

    power: float = 1.0

    @property
    def scale(self) -> ScoreScale:
        """Unchanged."""
        return SameScores()

    def __call__(self, probabilities: Tensor, objectness_logits: Tensor) -> Tensor:
        """Return the scores."""
        return probabilities * objectness_logits.sigmoid() ** self.power

    def scorable(self, objectness_logits: Tensor) -> Tensor:
        """Return where logits are not NaN."""
        return ~torch.isnan(objectness_logits)

    def min_probability(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return the probability whose product with the objectness is the score."""
        return score / objectness_logits.sigmoid() ** self.power * (1 - SLACK)


SCORE_FUSIONS: dict[str, ScoreFusion] = {
    "upstream": GeometricMeanWithLogit(),
    "sigmoid": GeometricMeanWithSigmoid(),
}
"""Values of MODEL.CLIP.RPN_SCORE_FUSION."""


ReportedScore = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Maps final scores [M], probabilities [M] and "rescored" to the order [M] and the scores to report."""


def report_score(scores: Tensor, probabilities: Tensor, rescored: bool) -> tuple[Tensor, Tensor]:
    """Report the score used for selection."""
    return torch.arange(len(scores), device=scores.device), scores


def report_probability(scores: Tensor, probabilities: Tensor, rescored: bool) -> tuple[Tensor, Tensor]:
    """Report the class probability, sorted by it."""
    order = probabilities.argsort(descending=True, stable=True)
    return order, probabilities[order]


def report_probability_as_upstream(scores: Tensor, probabilities: Tensor, rescored: bool) -> tuple[Tensor, Tensor]:
    """Report the class probability in the order of the selection score; no effect with soft-NMS."""
    order, _ = report_score(scores, probabilities, rescored)
    return order, scores if rescored else probabilities


REPORTED_SCORES: dict[str, ReportedScore] = {
    "corrected": report_probability,
    "upstream": report_probability_as_upstream,
}
"""Values of MODEL.CLIP.VIS_BEHAVIOUR, which applies when MODEL.CLIP.VIS is on."""


@dataclass(frozen=True)
class Candidates:
    """M (region, class) pairs whose score exceeds the threshold, ordered by region."""

    regions: Tensor
    """int64 [M], region rows."""
    classes: Tensor
    """int64 [M]."""
    boxes: Tensor
    """float [M, 4], xyxy in pixels of the network input, clipped to it."""
    scores: Tensor
    """float [M], used for selection."""
    probabilities: Tensor
    """float [M]."""

    def __getitem__(self, rows: Tensor) -> Candidates:
        """Return the candidates of rows: int64 [M'] or bool [M]."""
        return Candidates(*(getattr(self, part.name)[rows] for part in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Candidates]) -> Candidates:
        """Concatenate the candidates of consecutive regions."""
        return Candidates(*(torch.cat([getattr(p, part.name) for p in parts]) for part in fields(Candidates)))


@dataclass(frozen=True)
class DetectionSelector:
    """Detection selector of one image."""

    score_threshold: float
    max_detections: int | None
    fusion: ScoreFusion
    suppression: Suppression
    reported_score: ReportedScore = report_score
    clips_boxes: bool = True
    """Clip boxes to the image before suppression."""

    @property
    def scale(self) -> ScoreScale:
        """Scale of the reported scores: that of the score fusion, unless probabilities are reported (VIS)."""
        fused = self.reported_score is report_score
        if self.reported_score is report_probability_as_upstream:
            fused = self.suppression.rescores
        return self.fusion.scale if fused else SameScores()

    def __call__(
        self,
        boxes: Tensor,
        probabilities: Tensor,
        objectness_logits: Tensor,
        image_size: tuple[int, int],
    ) -> tuple[Instances, Tensor]:
        """Select detections; arguments as for `candidates`, the result as of `select`."""
        return self.select(self.candidates(boxes, probabilities, objectness_logits, image_size), image_size)

    def candidates(
        self,
        boxes: Tensor,
        probabilities: Tensor,
        objectness_logits: Tensor,
        image_size: tuple[int, int],
        first_region: int = 0,
    ) -> Candidates:
        """Return the candidate detections.

        Scores are computed only where the probability is large enough: of thousands of classes, few are.

        Args:
            boxes: float [R, 4] or [R, 4 * K], xyxy in pixels of the network input.
            probabilities: float [R, K + 1], background last.
            objectness_logits: float [R].
            image_size: (height, width) of the network input.
            first_region: row offset of these regions.
        """
        # The sum is not finite if any probability is not.
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(probabilities.sum(dim=1))
        rows = (finite & self.fusion.scorable(objectness_logits)).nonzero()[:, 0]
        boxes, objectness_logits = boxes[rows], objectness_logits[rows]
        clipped = Boxes(boxes.reshape(-1, 4))
        if self.clips_boxes:
            clipped.clip(image_size)
        boxes = clipped.tensor.view(len(rows), boxes.shape[1] // 4, 4)  # [R', 1 or K, 4]
        known = probabilities if len(rows) == len(probabilities) else probabilities[rows]  # copied only where needed
        least = self.fusion.min_probability(max(self.score_threshold, 0.0), objectness_logits).nan_to_num(nan=0.0)
        region, category = (known[:, :-1] >= least[:, None]).nonzero(as_tuple=True)
        found = known[region, category]
        scores = self.fusion(found, objectness_logits[region])
        own_boxes = boxes[region, category if boxes.shape[1] > 1 else 0]
        candidates = Candidates(rows[region] + first_region, category, own_boxes, scores, found)
        return candidates[scores > self.score_threshold]

    def select(self, candidates: Candidates, image_size: tuple[int, int]) -> tuple[Instances, Tensor]:
        """Apply suppression and keep the best.

        Args:
            candidates: of all regions of the image.
            image_size: (height, width) of the network input.

        Returns:
            Instances with `pred_boxes`, `scores`, `pred_classes`, best first, and int64 [M] with the row of
            each detection's region.
        """
        keep, kept_scores = self.suppression(
            candidates.boxes, candidates.scores, candidates.classes, self.max_detections
        )
        kept = candidates[keep]
        order, reported = self.reported_score(kept_scores, kept.probabilities, self.suppression.rescores)
        result = Instances(image_size)
        result.pred_boxes = Boxes(kept.boxes[order])
        result.scores = reported
        result.pred_classes = kept.classes[order]
        return result, kept.regions[order]

    def can_exceed(self, score: float, objectness_logits: Tensor) -> Tensor:
        """Return bool [R]: regions whose score can exceed `score` for some probability."""
        least = self.fusion.min_probability(max(score, 0.0), objectness_logits)
        return self.fusion.scorable(objectness_logits) & ~(least > 1)

    def largest_score(self, objectness_logits: Tensor) -> Tensor:
        """Return [R], an upper bound of each region's score over all probabilities."""
        certain = self.fusion(torch.ones_like(objectness_logits), objectness_logits) * (1 + SLACK)
        return torch.where(self.fusion.scorable(objectness_logits), certain, -torch.inf)

    def is_full(self, better: Sequence[Candidates]) -> bool:
        """Return whether all detections are among candidates whose score no other candidate can exceed.

        That holds once `max_detections` of them survive suppression: a candidate is never suppressed by one with a
        lower score. Returns False for suppression that changes scores.
        """
        if self.max_detections is None or self.suppression.rescores:
            return False
        if not better:
            return self.max_detections == 0
        if sum(len(part.scores) for part in better) < self.max_detections:
            return False
        strong = Candidates.cat(better)
        keep, _ = self.suppression(strong.boxes, strong.scores, strong.classes, self.max_detections)
        return len(keep) == self.max_detections


def build_detection_selector(cfg: CfgNode) -> DetectionSelector:
    """Return the selector that MODEL.CLIP, MODEL.ROI_HEADS and TEST describe."""
    clip, limit = cfg.MODEL.CLIP, cfg.TEST.DETECTIONS_PER_IMAGE
    return DetectionSelector(
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        max_detections=None if limit < 0 else limit,
        fusion=SCORE_FUSIONS[clip.RPN_SCORE_FUSION] if clip.MULTIPLY_RPN_SCORE else ProbabilityOnly(),
        suppression=build_suppression(cfg),
        reported_score=REPORTED_SCORES[clip.VIS_BEHAVIOUR] if clip.VIS else report_score,
    )
