"""RegionCLIP (Zhong et al., CVPR 2022): region-text pretraining, zero-shot detection and transfer learning."""

from regionclip.method import Method
from regionclip.methods.regionclip.keys import DEAD_KEYS, DEAD_NODES, KEYS

METHOD = Method(
    name="regionclip",
    title="RegionCLIP",
    paper="https://arxiv.org/abs/2112.09106",
    license="Apache-2.0",
    meta_architectures={
        "CLIPFastRCNN": "regionclip.methods.regionclip.detector",
        "PretrainFastRCNN": "regionclip.methods.regionclip.pretraining",
    },
    roi_heads={
        "CLIPRes5ROIHeads": "regionclip.methods.regionclip.heads",
        "CLIPStandardROIHeads": "regionclip.methods.regionclip.heads",
        "CLIPTransformerROIHeads": "regionclip.methods.regionclip.transformer_heads",
        "PretrainRes5ROIHeads": "regionclip.methods.regionclip.pretraining",
    },
    image_text_architectures=("PretrainFastRCNN",),
    half_precision=(("CLIPFastRCNN", "CLIPRes5ROIHeads"),),
    keys=KEYS,
    dead_keys=DEAD_KEYS,
    dead_nodes=DEAD_NODES,
    checks="regionclip.methods.regionclip.checks",
    checkpoints="regionclip.methods.regionclip.checkpoints",
    zoo="regionclip.methods.regionclip.zoo",
    region_features={
        "MODEL.META_ARCHITECTURE": ("CLIPFastRCNN",),
        "MODEL.ROI_HEADS.NAME": ("CLIPRes5ROIHeads",),
        "MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER": ("True",),
    },
)
