"""RAL and RAF of a config, for any detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from torch import Tensor, nn

from regionclip.clip.architectures import CLIPArchitecture, get_architecture
from regionclip.clip.class_embeddings import load_concepts
from regionclip.clip.padded_crops import CLIPPixels, DetectorPixels, PixelMode
from regionclip.config.resolve import clip_architecture
from regionclip.modeling.preprocessing import ImagePreprocessor
from regionclip.modeling.retrieval_augmentation.augmenter import ConceptAugmenter
from regionclip.modeling.retrieval_augmentation.features import (
    ClassCosines,
    CropEmbeddings,
    NamedClassCosines,
    NoAugmentation,
    OwnEmbeddings,
    RegionAugmentation,
    RetrievalAugmentedFeatures,
    own_class_cosines,
)
from regionclip.modeling.retrieval_augmentation.fusion import FUSIONS
from regionclip.modeling.retrieval_augmentation.loss import HingeSettings, RetrievalAugmentedLoss
from regionclip.modeling.retrieval_augmentation.negatives import NegativeStore, read_negative_words

PIXEL_MODES: dict[str, Callable[[ImagePreprocessor, bool], PixelMode]] = {
    "clip": lambda preprocessor, is_bgr: CLIPPixels(swap_channels=is_bgr),
    "uint8": lambda preprocessor, is_bgr: CLIPPixels(truncate=True),
    "detector": lambda preprocessor, is_bgr: DetectorPixels(NormalizedAsInput(preprocessor)),
}
"""Values of MODEL.RALF.RAF.PIXEL_MODE, from the detector's preprocessor and whether its input is BGR."""


class NormalizedAsInput:
    """Normalization of the detector's input, for one image."""

    def __init__(self, preprocessor: ImagePreprocessor) -> None:
        """Use the preprocessor of a detector."""
        self.preprocessor = preprocessor

    def __call__(self, image: Tensor) -> Tensor:
        """Return an image, uint8 [3, H, W], as float [3, H, W]."""
        height, width = image.shape[1:]
        return self.preprocessor([image]).tensor[0, :, :height, :width].float()


def build_ral(cfg: CfgNode, names: Sequence[str]) -> RetrievalAugmentedLoss | None:
    """Return the losses of MODEL.RALF.RAL; None if they are not enabled.

    Args:
        cfg: of a detector.
        names: class names of the labels.

    Raises:
        UserError: unreadable store, or one without a trained class.
    """
    ral, key = cfg.MODEL.RALF.RAL, "MODEL.RALF.RAL.STORE"
    if not ral.ENABLED:
        return None
    content = read_negative_words(ral.STORE, key)
    store = NegativeStore(content, content.rows_of(names, f"{key} {ral.STORE}"))
    numbers = ("LAMBDA_HARD", "LAMBDA_EASY", "MARGIN_HARD", "MARGIN_EASY", "WEIGHT_HARD", "WEIGHT_EASY")
    return RetrievalAugmentedLoss(store, HingeSettings(*(ral[name] for name in numbers)), ral.NUM_SAMPLES)


def augmenter_dim(cfg: CfgNode) -> int:
    """Return the width D of the space of RAF: that of its CLIP on crops, or of the detector."""
    raf = cfg.MODEL.RALF.RAF
    return get_architecture(raf.CLIP).embedding_dim if raf.EMBEDDING == "crops" else cfg.MODEL.CLIP.TEXT_EMB_DIM


def embeds_names(cfg: CfgNode) -> bool:
    """Return whether RAF embeds class names by its own text encoder: its CLIP is not that of the detector."""
    raf = cfg.MODEL.RALF.RAF
    return raf.EMBEDDING == "crops" and get_architecture(raf.CLIP) != clip_architecture(cfg)


def build_raf(cfg: CfgNode, preprocessor: ImagePreprocessor) -> RegionAugmentation:
    """Return the features of MODEL.RALF.RAF for a detector with a preprocessor; without weights.

    Raises:
        UserError: unreadable concepts, or of another width.
    """
    raf = cfg.MODEL.RALF.RAF
    if not raf.ENABLED:
        return NoAugmentation()
    dim = augmenter_dim(cfg)
    regions: OwnEmbeddings | CropEmbeddings = OwnEmbeddings(dim)
    cosines: ClassCosines = own_class_cosines
    if raf.EMBEDDING == "crops":
        architecture = get_architecture(raf.CLIP)
        pixels = PIXEL_MODES[raf.PIXEL_MODE](preprocessor, cfg.INPUT.FORMAT == "BGR")
        regions = CropEmbeddings(architecture, pixels, _text_encoder(architecture) if embeds_names(cfg) else None)
        cosines = NamedClassCosines(regions) if embeds_names(cfg) else own_class_cosines
    return RetrievalAugmentedFeatures(
        ConceptAugmenter(dim, raf.NUM_CONCEPTS),
        load_concepts(raf.CONCEPTS, dim, "MODEL.RALF.RAF.CONCEPTS"),
        regions,
        cosines,
        FUSIONS[raf.FUSION](raf.OFFSET),
        raf.TOPK,
        refined=raf.BOX_SOURCE == "final",
    )


def _text_encoder(architecture: CLIPArchitecture) -> nn.Module:
    from regionclip.clip.text_encoder import TextEncoder  # imports open_clip

    return TextEncoder(architecture)
