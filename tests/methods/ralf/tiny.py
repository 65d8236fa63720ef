"""DetPro in small, for the tests that every method passes."""

from regionclip.config.loading import load_config
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA

CONFIG = "configs/ralf/detpro_lvis.yaml"
CLASSES = 5
EMBEDDINGS = "MODEL.CLIP.TEXT_EMB_PATH"
NAMES = "cat,dog,horse,boat,traffic light"
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": "False",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "16",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "2",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "2",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": "",
    "MODEL.ROI_HEADS.NUM_CLASSES": "5",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "50",
    "MODEL.RALF.BASE_CLASSES": "cat,dog,horse",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "256",
    "DATALOADER.NUM_WORKERS": "0",
}
TRAINED = OVERRIDES | {"MODEL.RALF.DISTILL_WEIGHT": "0"}


def config(base=CONFIG, options=OVERRIDES, **overrides):
    """Return the config of a tiny detector without class embeddings."""
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(base, flat(options | {"DATASETS.TEST": "()", EMBEDDINGS: ""} | changes))
