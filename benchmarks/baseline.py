"""Baseline of the benchmarks: stock Detectron2 and torchvision, without optimizations.

It uses the weights of one of this package's detectors: contiguous maps, separate normalization layers, Detectron2's
pooler and proposal selection, all regions of all proposals at once, CLIP's attention pool with all tokens
as queries, class embeddings normalized in each call, and the published loop over images for the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.resnet import ModifiedResNet
from regionclip.methods.regionclip.box_predictor import TextEmbeddingOutputLayers
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.preprocessing import ImagePreprocessor


class PlainDetector:
    """A detector with a C4 head and a text-embedding classifier, computed as upstream does."""

    def __init__(self, model: CLIPFastRCNN) -> None:
        """Use the weights of a model that was not optimized for inference."""
        self.model = model.eval()
        image_encoder = clip_image_encoder(model.backbone)
        assert isinstance(image_encoder, ModifiedResNet)
        assert image_encoder.attnpool is not None
        self.image_encoder, self.attention_pool = image_encoder, image_encoder.attnpool
        self.predictor: TextEmbeddingOutputLayers = model.roi_heads.box_predictor
        pooler = model.roi_heads.pooler
        (layer,) = pooler.level_poolers
        self.pooler = ROIPooler(layer.output_size, [layer.spatial_scale], layer.sampling_ratio, "ROIAlignV2")

    @torch.no_grad()
    def __call__(self, inputs: Sequence[dict[str, Any]]) -> list[Instances]:
        """Return the detections of each image, in pixels of the network input."""
        if self.model.offline_backbone is None:
            proposals = self.model.proposal_source.propose(inputs, self.model.device)
        else:
            proposals = self.propose(inputs)
        images = plain_batch(self.model.preprocessor, inputs)
        maps = [self.image_encoder.feature_maps(images.tensor, ["res4"])["res4"]]
        pooled = self.pooler(maps, [p.proposal_boxes for p in proposals])
        embeddings = attend_with_all_tokens(self.attention_pool, self.image_encoder.layer4(pooled))
        return self.detect(embeddings, proposals)

    def propose(self, inputs: Sequence[dict[str, Any]]) -> list[Instances]:
        """Return Detectron2's proposals."""
        rpn, backbone = self.model.offline_proposal_generator, self.model.offline_backbone
        images = plain_batch(self.model.offline_preprocessor, inputs)
        maps = backbone(images.tensor)
        features = [maps[name] for name in rpn.in_features]
        logits, deltas = rpn.rpn_head(features)
        logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
        # [N, 4A, H, W] -> [N, HWA, 4]
        deltas = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in deltas]
        return RPN.predict_proposals(rpn, rpn.anchor_generator(features), logits, deltas, images.image_sizes)

    def detect(self, embeddings: Tensor, proposals: Sequence[Instances]) -> list[Instances]:
        """Score the regions [R, D], and apply suppression, image by image."""
        predictor, selector = self.predictor, self.predictor.selector
        classifier = predictor.test_cls_score or predictor.cls_score
        unit = F.normalize(embeddings, dim=1)
        cosines = unit @ F.normalize(classifier.weight, dim=1).T
        logits = torch.cat([cosines, predictor.cls_bg_score(unit)], dim=1) / predictor.temperature
        probabilities = logits.softmax(dim=1).split([len(p) for p in proposals])
        results = []
        for scores, proposal in zip(probabilities, proposals, strict=True):
            objectness = proposal.objectness_logits[:, None].expand(-1, scores.shape[1])
            fused = selector.fusion(scores, objectness)[:, :-1]
            boxes = proposal.proposal_boxes.clone()
            boxes.clip(proposal.image_size)
            above = fused > selector.score_threshold
            region, category = above.nonzero().T
            keep = batched_nms(boxes.tensor[region], fused[above], category, selector.suppression.iou_threshold)
            keep = keep[: selector.max_detections]
            result = Instances(proposal.image_size)
            result.pred_boxes = Boxes(boxes.tensor[region[keep]])
            result.scores, result.pred_classes = fused[above][keep], category[keep]
            results.append(result)
        return results


def plain_batch(preprocessor: ImagePreprocessor | None, inputs: Sequence[dict[str, Any]]) -> ImageList:
    """Normalize images and pad them to a contiguous batch."""
    assert preprocessor is not None
    scale = 255.0 if preprocessor.unit_range else 1.0
    images = [image["image"].to(preprocessor.mean.device) for image in inputs]
    if preprocessor.flip_channels:
        images = [image.flip(0) for image in images]
    normalized = [(image / scale - preprocessor.mean) / preprocessor.std for image in images]
    return ImageList.from_tensors(normalized, preprocessor.size_divisibility)


def attend_with_all_tokens(pool: AttentionPool2d, maps: Tensor) -> Tensor:
    """Return [R, D] from [R, C, h, w] as CLIP's own code does: all tokens are queries, one output is used."""
    tokens = maps.flatten(2).permute(2, 0, 1)  # [L, R, C]
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    projections: tuple[nn.Linear, ...] = (pool.q_proj, pool.k_proj, pool.v_proj)
    attended, _ = F.multi_head_attention_forward(
        query=tokens,
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([layer.bias for layer in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        training=False,
        need_weights=False,
    )
    return attended[0]
