"""A tiny detector, and the device that the goldens are computed on."""

import os

from tests.helpers.paths import DATA

DEVICE = os.environ.get("REGIONCLIP_TEST_DEVICE", "cpu")
"""Where the goldens are computed."""


LVIS_CUSTOM = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_custom_img.yaml"


TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "4",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "256",
    "MODEL.CLIP.CROP_REGION_TYPE": "RPN",
    "MODEL.CLIP.OFFLINE_RPN_CONFIG": str(DATA / "tiny_rpn.yaml"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "DATALOADER.NUM_WORKERS": "0",
}


OLN_YAML = "  PROPOSAL_GENERATOR:\n    NAME: OLN\n  OLN:\n    BOX_ON: False\n  RPN:"
"""Written for `  RPN:` in tests/data/tiny_rpn.yaml, it makes an OLN without its second stage."""


def flat(overrides):
    """Turn a dict of overrides into the list that command lines take."""
    return [part for pair in overrides.items() for part in pair]
