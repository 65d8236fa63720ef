"""LP-OVOD in small, for the tests that every method passes."""

from tests.helpers.paths import DATA

CONFIG = "configs/lp_ovod/coco_probe.yaml"
CLASSES = 65
EMBEDDINGS = "MODEL.CLIP.TEXT_EMB_PATH"
NAMES = "coco65"
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "16",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "2",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.CLIP.CROP_REGION_TYPE": "RPN",
    "MODEL.CLIP.OFFLINE_RPN_CONFIG": str(DATA / "tiny_rpn.yaml"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "256",
    "DATALOADER.NUM_WORKERS": "0",
}
TRAINED = OVERRIDES
