"""What several keys of a config mean together."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regionclip.clip.architectures import CLIPArchitecture, architecture_from_depth, get_architecture
from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.files import resolve_path
from regionclip.method import SHARED, methods

DENSE_BACKBONES = tuple(f"build_clip_{name}_backbone" for name in ("vit", "swin", "davit", "focal"))
"""Transformer image encoders, whose detectors have a text encoder of their own."""

CLIP_BACKBONES = tuple(name for name in SHARED["BACKBONE"] if name not in DENSE_BACKBONES)


def clip_architecture(cfg: CfgNode) -> CLIPArchitecture:
    """Return the CLIP size of `cfg`: `MODEL.CLIP.ARCHITECTURE`, else upstream's `MODEL.RESNETS.DEPTH`.

    Raises:
        UserError: neither key names a known size.
    """
    if cfg.MODEL.CLIP.ARCHITECTURE:
        return get_architecture(cfg.MODEL.CLIP.ARCHITECTURE)
    return architecture_from_depth(cfg.MODEL.RESNETS.DEPTH)


def reads_class_names(cfg: CfgNode) -> bool:
    """Return whether the detector embeds class names itself, and needs no embedding file."""
    return cfg.MODEL.BACKBONE.NAME in DENSE_BACKBONES


def uses_clip_backbone(cfg: CfgNode) -> bool:
    """Return whether the detector itself (not its RPN) stands on a CLIP image encoder."""
    return cfg.MODEL.BACKBONE.NAME in CLIP_BACKBONES


def learns_from_pairs(cfg: CfgNode) -> bool:
    """Return whether the training data are image-text pairs."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name == "ImageTextCLIP" or any(name in method.image_text_architectures for method in methods())


def uses_attention_pool(cfg: CfgNode) -> bool:
    """Return whether the ROI head is a method's own, and turns regions into embeddings of the joint space."""
    is_ours = any(cfg.MODEL.ROI_HEADS.NAME in method.roi_heads for method in methods())
    return is_ours and (bool(cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER) or learns_from_pairs(cfg))


def find_weights(path: str) -> Path:
    """Return the file behind `path`; one published script leaves out the ending `.pth`."""
    found = resolve_path(path)
    with_ending = resolve_path(f"{path}.pth")
    return with_ending if not found.is_file() and with_ending.is_file() else found


def test_class_count(cfg: CfgNode, dataset_name: str) -> int:
    """Return how many classes the detector tells apart on a dataset.

    A detector that reads class names has those of the dataset; open-set embeddings decide, if any.
    """
    clip = cfg.MODEL.CLIP
    if reads_class_names(cfg):
        return len(MetadataCatalog.get(dataset_name).thing_classes)
    if clip.USE_TEXT_EMB_CLASSIFIER and clip.OPENSET_TEST_TEXT_EMB_PATH:
        return len(load_class_embeddings(clip.OPENSET_TEST_TEXT_EMB_PATH))
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES
