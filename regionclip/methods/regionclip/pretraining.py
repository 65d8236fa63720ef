"""RegionCLIP pretraining: a student learns region embeddings from captions and a CLIP teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone, build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.text_encoder import TextEncoder
from regionclip.config.resolve import clip_architecture
from regionclip.methods.regionclip.resolve import teacher_architecture
from regionclip.methods.regionclip.teachers import Teacher, build_teacher
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.gathering import gather_rows
from regionclip.modeling.heads.region_encoder import BorrowsLastStage
from regionclip.modeling.losses.pretraining import distillation_sum, image_text_loss, mil_cross_entropy, unit_rows
from regionclip.modeling.poolers import build_pooler
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.generated_boxes import image_generator
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource

logger = logging.getLogger(__name__)


class PretrainRes5ROIHeads(BorrowsLastStage, nn.Module):
    """RoI head that only embeds regions: RoIAlign, then the image encoder's last stage and attention pool."""

    @configurable
    def __init__(self, *, in_features: Sequence[str], pooler: ROIPooler) -> None:
        """Create a head; call `borrow` before the first forward pass."""
        super().__init__()
        self.in_features = list(in_features)
        self.pooler = pooler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {"in_features": [name], "pooler": build_pooler(cfg.MODEL.ROI_BOX_HEAD, [input_shape[name].stride])}

    def forward(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings [R, D] of the boxes of each image, not normalized."""
        return self.encode(features, boxes)


@dataclass(frozen=True)
class ConceptMatching:
    """How regions are matched with a concept pool."""

    threshold: float
    """Minimum teacher probability of a pseudo label (CONCEPT_THRES)."""
    across_processes: bool
    """Whether the contrastive loss compares the regions of all processes."""
    distillation: float = 1.0
    """Weight of the distillation loss (DISTILL_LOSS_WEIGHT); 0 disables it."""
    contrast: float = 1.0
    """Weight of the contrastive loss (CONTRASTIVE_LOSS_WEIGHT); 0 disables it."""
    teacher_temperature: float = 0.01
    """Divides the teacher's cosines (TEACHER_CLSS_TEMP)."""


class PretrainFastRCNN(nn.Module):
    """RegionCLIP pretraining (section 3.3 of the paper), with the published state-dict keys."""

    frozen_parts = ("lang_encoder.",)
    """Key prefixes that need loaded weights before training, in addition to those of RPN and teacher."""

    concept_emb: Tensor
    teacher_concept_emb: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        roi_heads: PretrainRes5ROIHeads,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource,
        temperature: float,
        sampled_regions: int | None,
        global_box: str,
        gather: bool,
        lang_encoder: nn.Module | None = None,
        teacher: Teacher | None = None,
        concepts: tuple[Tensor, Tensor] | None = None,
        matching: ConceptMatching | None = None,
    ) -> None:
        """Create student and teacher.

        Args:
            backbone: image encoder of the student.
            roi_heads: RoI head of the student.
            preprocessor: normalizes images for student and teacher.
            proposal_source: source of the regions.
            temperature: divides the student's cosines (CLSS_TEMP).
            sampled_regions: number of regions sampled per image; None keeps all.
            global_box: `image`, or `padded` for the whole batch tensor, as upstream.
            gather: share image and text embeddings among processes (GATHER_GPUS).
            lang_encoder: frozen text encoder; None disables the image-text loss.
            teacher: pseudo-labels regions; None disables the region-concept losses.
            concepts: embeddings [C, D] of the same concepts for student and teacher.
            matching: how regions are matched with concepts.
        """
        super().__init__()
        rpn = rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.backbone = backbone
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.lang_encoder = lang_encoder.requires_grad_(False) if lang_encoder else None
        self.teacher, self.teacher_backbone = teacher, teacher.backbone if teacher else None
        self.roi_heads = roi_heads
        self.preprocessor = preprocessor
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.proposal_source = proposal_source
        self.temperature, self.sampled_regions = temperature, sampled_regions
        self.global_box, self.gather, self.matching = global_box, gather, matching
        student_encoder = clip_image_encoder(backbone)
        assert student_encoder is not None
        roi_heads.borrow(student_encoder)
        if concepts:
            for name, table in zip(("concept_emb", "teacher_concept_emb"), concepts, strict=True):
                self.register_buffer(name, unit_rows(table), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        clip, backbone = cfg.MODEL.CLIP, build_backbone(cfg)
        arguments: dict[str, Any] = {
            "backbone": backbone,
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "preprocessor": build_preprocessor(cfg),
            "proposal_source": build_proposal_source(cfg, rpn_proposals=clip.PRETRAIN_RPN_REGIONS),
            "temperature": clip.CLSS_TEMP,
            "sampled_regions": clip.PRETRAIN_SAMPLE_REGIONS,
            "global_box": clip.GLOBAL_BOX,
            "gather": clip.GATHER_GPUS,
        }
        if clip.PRETRAIN_IMG_TXT_LEVEL:
            arguments["lang_encoder"] = TextEncoder(clip_architecture(cfg))
        if clip.CONCEPT_POOL_EMB:
            across = clip.GATHER_GPUS and clip.CONTRASTIVE_REGIONS == "joined"
            arguments["teacher"] = build_teacher(cfg)
            arguments["concepts"] = _load_concepts(cfg)
            arguments["matching"] = ConceptMatching(
                clip.CONCEPT_THRES,
                across,
                clip.DISTILL_LOSS_WEIGHT,
                clip.CONTRASTIVE_LOSS_WEIGHT,
                clip.TEACHER_CLSS_TEMP,
            )
        return arguments

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.preprocessor.mean.device

    def train(self, mode: bool = True) -> PretrainFastRCNN:
        """Set training mode; RPN, teacher and text encoder always stay in evaluation mode."""
        super().train(mode)
        for module in (
            self.offline_backbone,
            self.offline_proposal_generator,
            self.teacher_backbone,
            self.lang_encoder,
        ):
            if module is not None:
                module.eval()
        return self

    def forward(self, batched_inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `tokens`, int64
                [77], of its caption; `seed` of its region sampling.

        Raises:
            RuntimeError: in evaluation mode; the weights are evaluated by `CLIPFastRCNN`.
        """
        if not self.training:
            raise RuntimeError("PretrainFastRCNN only trains: evaluate its weights with a CLIP_fast_rcnn config")
        if self.gather:
            self._pad_as_all_processes(batched_inputs)
        images = self.preprocessor([image["image"] for image in batched_inputs])
        regions = self._sample_regions(batched_inputs)
        whole = self._whole_image_boxes(images)
        boxes = [Boxes.cat([own, whole_image]) for own, whole_image in zip(regions, whole, strict=True)]
        embeddings = self.roi_heads(self.backbone(images.tensor), boxes)
        embeddings = embeddings.to(_exact(embeddings))
        # The last box of each image is the whole image.
        is_whole = torch.cat([torch.arange(len(b), device=self.device) == len(b) - 1 for b in boxes])
        losses = {}
        if self.lang_encoder is not None:
            tokens = torch.stack([image["tokens"] for image in batched_inputs]).to(self.device)
            losses["loss_img_txt_level"] = self._image_text_loss(embeddings[is_whole], tokens)
        if self.teacher is not None:
            teacher = self._teach(self.teacher, images, regions)
            # Half precision would round cosines, which are then divided by 0.01.
            with torch.autocast(self.device.type, enabled=False):
                losses |= self._concept_losses(embeddings[~is_whole], teacher)
        return losses

    def _pad_as_all_processes(self, inputs: Sequence[ImageInput]) -> None:
        """Pad to the largest image of all processes, because padding slightly changes the features."""
        sizes = comm.all_gather([tuple(image["image"].shape[1:]) for image in inputs])
        heights, widths = zip(*(size for process in sizes for size in process), strict=True)
        for preprocessor in (self.preprocessor, self.offline_preprocessor):
            if preprocessor is not None:
                preprocessor.smallest = (max(heights), max(widths))

    @torch.no_grad()
    def _sample_regions(self, inputs: Sequence[ImageInput]) -> list[Boxes]:
        proposals = self.proposal_source.propose(inputs, self.device)
        sampled = []
        for image, found in zip(inputs, proposals, strict=True):
            order = torch.randperm(len(found), generator=image_generator(image))[: self.sampled_regions]
            sampled.append(found.proposal_boxes[order.to(self.device)])
        return sampled

    def _whole_image_boxes(self, images: ImageList) -> list[Boxes]:
        sizes = images.image_sizes
        if self.global_box == "padded":
            sizes = [tuple(images.tensor.shape[-2:])] * len(images)
        return [Boxes(torch.tensor([[0.0, 0.0, width, height]], device=self.device)) for height, width in sizes]

    def _image_text_loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        assert self.lang_encoder is not None
        with torch.no_grad():
            texts = self.lang_encoder(tokens)
            texts = texts.to(_exact(texts))
        if self.gather:
            images, texts = gather_rows(images), gather_rows(texts)
        with torch.autocast(self.device.type, enabled=False):
            return image_text_loss(images, texts, self.temperature)

    @torch.no_grad()
    def _teach(self, teacher: Teacher, images: ImageList, regions: Sequence[Boxes]) -> Tensor:
        """Return the teacher's concept probabilities [R, C]."""
        assert self.matching is not None
        embeddings = teacher.embed(images.tensor, regions)
        with torch.autocast(self.device.type, enabled=False):
            cosines = unit_rows(embeddings.to(self.teacher_concept_emb.dtype)) @ self.teacher_concept_emb.T
            return (cosines / self.matching.teacher_temperature).softmax(dim=1)

    def _concept_losses(self, embeddings: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return distillation and contrastive loss of regions [R, D] with the teacher's probabilities [R, C]."""
        assert self.matching is not None
        confidence, labels = teacher.max(dim=1)
        kept = confidence > self.matching.threshold
        total = self._count(kept)
        if not total:
            logger.warning("No region is above CONCEPT_THRES %g: all are used", self.matching.threshold)
            kept = torch.ones_like(kept)
            total = self._count(kept)
        get_event_storage().put_scalar("pretrain/num_labelled_regions", total)
        labels, student = labels[kept], unit_rows(embeddings[kept])
        others = gather_rows(labels) if self.matching.across_processes else labels
        # Averaging gradients over processes then gives the mean over the regions of all processes.
        share = (comm.get_world_size() if self.matching.across_processes else 1) / max(total, 1)
        losses = {}
        if weight := self.matching.distillation:
            logits = student @ self.concept_emb.T / self.temperature
            losses["loss_region_distill"] = distillation_sum(logits, teacher[kept]) * (weight * share)
        if weight := self.matching.contrast:
            contrast = student @ self.concept_emb[others].T / self.temperature
            same = (labels[:, None] == others[None]).to(contrast.dtype)
            losses["loss_concept_contrastive"] = mil_cross_entropy(contrast, same).sum() * (weight * share)
        return losses

    def _count(self, kept: Tensor) -> int:
        count = int(kept.sum())
        assert self.matching is not None
        return sum(comm.all_gather(count)) if self.matching.across_processes else count


def _exact(values: Tensor) -> torch.dtype:
    """Return the dtype for comparisons of possibly half-precision values."""
    return torch.promote_types(values.dtype, torch.float32)


def _load_concepts(cfg: CfgNode) -> tuple[Tensor, Tensor]:
    clip = cfg.MODEL.CLIP
    student = load_class_embeddings(
        clip.CONCEPT_POOL_EMB, dim=clip_architecture(cfg).embedding_dim, key="MODEL.CLIP.CONCEPT_POOL_EMB"
    )
    teacher = load_class_embeddings(
        clip.TEACHER_CONCEPT_POOL_EMB or clip.CONCEPT_POOL_EMB,
        rows=len(student),
        dim=teacher_architecture(cfg).embedding_dim,
        key="MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB",
    )
    return student, teacher
