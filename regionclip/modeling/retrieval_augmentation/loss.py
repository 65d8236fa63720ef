"""RAL: hinge losses of ground-truth boxes against hard and easy negative words (RALF, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.modeling.gathering import mean_over_processes
from regionclip.modeling.proposals.generated_boxes import image_generator
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.retrieval_augmentation.negatives import DrawnNegatives, NegativeStore

EmbedBoxes = Callable[[list[Boxes]], Tensor]
"""Maps the boxes of each image of a batch to region embeddings [N, D], not normalized, with gradients."""


@dataclass(frozen=True)
class HingeSettings:
    """Numbers of both losses, with the published values of DetPro."""

    lambda_hard: float = 1.0
    """Factor on the cosine with hard negatives (triplet_lambda_sim)."""
    lambda_easy: float = 10.0
    """Factor on the cosine with easy negatives (triplet_lambda_dis)."""
    margin_hard: float = 0.0
    margin_easy: float = 1.0
    weight_hard: float = 1.0
    """Of the loss (triplet_beta_sim)."""
    weight_easy: float = 1.0


def hinge_losses(regions: Tensor, negatives: DrawnNegatives, settings: HingeSettings) -> tuple[Tensor, Tensor]:
    """Return the weighted hard and easy loss of each box, float [N] each; zero for a class without negatives.

    The cosine with hard negatives is to be below that with the class, and that with easy ones below that with hard
    ones; gradients of the latter flow in both losses.

    Args:
        regions: unit embeddings [N, D] of the boxes.
        negatives: what they are compared with.
        settings: factors and margins.
    """
    own, hard, easy = ((regions * part).sum(dim=1) for part in (negatives.anchors, negatives.hard, negatives.easy))
    of_hard = (settings.lambda_hard * hard - own + settings.margin_hard).relu() * settings.weight_hard
    of_easy = (settings.lambda_easy * easy - hard + settings.margin_easy).relu() * settings.weight_easy
    return of_hard * negatives.complete, of_easy * negatives.complete


class RetrievalAugmentedLoss(nn.Module):
    """Both losses for the ground truth of a batch, for any detector that embeds boxes; it has no weights."""

    def __init__(self, store: NegativeStore, settings: HingeSettings, count: int) -> None:
        """Create the losses; `count` is the number q of hard, and of easy, negatives that are drawn for each box."""
        super().__init__()
        self.store, self.settings, self.count = store, settings, count

    def forward(
        self, embed: EmbedBoxes, targets: Sequence[Instances], inputs: Sequence[ImageInput]
    ) -> dict[str, Tensor]:
        """Return `loss_hard_negatives` and `loss_easy_negatives`: means over the boxes of the batch of all processes.

        Args:
            embed: embeds boxes.
            targets: for each image `gt_boxes`, in pixels of the network input, and `gt_classes`.
            inputs: with the `seed` of each image, so that draws depend on the seed and step of the training alone.
        """
        labels = torch.cat([target.gt_classes for target in targets])
        boxes = mean_over_processes(len(labels), labels.device)
        if not len(labels):
            # Other processes may share norms and gradients of the box head, which each has to compute.
            first, *others = (target.gt_boxes for target in targets)
            stand_in = Boxes(first.tensor.new_tensor([[0.0, 0.0, 1.0, 1.0]]))
            zero = embed([stand_in, *others]).sum() * 0.0
            return {"loss_hard_negatives": zero, "loss_easy_negatives": zero.clone()}
        drawn = [
            self.store.draw(target.gt_classes, self.count, _generator(image))
            for target, image in zip(targets, inputs, strict=True)
        ]
        together = {side: torch.cat([part[side] for part in drawn]) for side in self.store.lists}
        regions = F.normalize(embed([target.gt_boxes for target in targets]).float(), dim=1)
        hard, easy = hinge_losses(regions, self.store.negatives(labels, together), self.settings)
        return {"loss_hard_negatives": hard.sum() / boxes, "loss_easy_negatives": easy.sum() / boxes}


def _generator(image: ImageInput) -> torch.Generator:
    """Return a generator of another sequence than the one that samples the image's regions."""
    sampling = image_generator(image)
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=sampling)))
