"""CORA (Wu et al., CVPR 2023): region prompting, anchor pre-matching, and a localizer conditioned on class names."""

from regionclip.method import Method
from regionclip.methods.cora.keys import KEYS

METHOD = Method(
    name="cora",
    title="CORA: Adapting CLIP for Open-Vocabulary Detection with Region Prompting and Anchor Pre-Matching",
    paper="https://arxiv.org/abs/2303.13076",
    license="Apache-2.0",
    meta_architectures={
        "CORA": "regionclip.methods.cora.detector",
        "RegionPromptCLIP": "regionclip.methods.cora.prompting",
    },
    roi_heads={"RegionPromptHead": "regionclip.methods.cora.heads"},
    keys=KEYS,
    checks="regionclip.methods.cora.checks",
    checkpoints="regionclip.methods.cora.checkpoints",
    zoo="regionclip.methods.cora.zoo",
    commands="regionclip.methods.cora.commands",
    region_features={"MODEL.META_ARCHITECTURE": ("CORA", "RegionPromptCLIP")},
    class_conditioned=("CORA",),
    records="regionclip.methods.cora.pseudo_boxes",
)
