"""Detectron2's RPN with this package's NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.ops import batched_nms


class ExactRPN(RPN):
    """RPN whose NMS compares levels instead of offsetting boxes by level, and stops at the last proposal needed."""

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode and select proposals.

        Args:
            anchors: for each level, the anchors of all cells.
            pred_objectness_logits: for each level [N, A].
            pred_anchor_deltas: for each level [N, A, 4], where A is its number of anchors.
            image_sizes: (height, width) of each of the N images.

        Returns:
            For each image Instances with `proposal_boxes`, clipped, and `objectness_logits`, best first.
        """
        boxes, logits, levels = self._best_of_levels(
            self._decode_proposals(anchors, pred_anchor_deltas), pred_objectness_logits
        )
        return [self._select(boxes[i], logits[i], levels, size) for i, size in enumerate(image_sizes)]

    def _best_of_levels(self, boxes: Sequence[Tensor], logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [N, P, 4], logits [N, P] and levels [P] of the top PRE_NMS_TOPK anchors of each level."""
        limit = self.pre_nms_topk[self.training]
        chosen = [level_logits.topk(min(limit, level_logits.shape[1]), dim=1) for level_logits in logits]
        best = [
            of_level.gather(1, rows[:, :, None].expand(-1, -1, 4))
            for of_level, (_, rows) in zip(boxes, chosen, strict=True)
        ]
        levels = [torch.full_like(rows[0], level) for level, (_, rows) in enumerate(chosen)]
        return torch.cat(best, dim=1), torch.cat([values for values, _ in chosen], dim=1), torch.cat(levels)

    def _select(self, boxes: Tensor, logits: Tensor, levels: Tensor, image_size: tuple[int, int]) -> Instances:
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(logits)
        if self.training and not bool(finite.all()):
            raise FloatingPointError("the region proposal network predicts infinite boxes: training has diverged")
        if not bool(finite.all()):
            boxes, logits, levels = boxes[finite], logits[finite], levels[finite]
        clipped = Boxes(boxes)
        clipped.clip(image_size)
        rows = clipped.nonempty(threshold=self.min_box_size).nonzero()[:, 0]
        limit = self.post_nms_topk[self.training]
        rows = rows[batched_nms(clipped.tensor[rows], logits[rows], levels[rows], self.nms_thresh, limit)]
        return Instances(image_size, proposal_boxes=clipped[rows], objectness_logits=logits[rows])
