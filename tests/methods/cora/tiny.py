"""CORA in small, for the tests that every method passes."""

from tests.helpers.paths import DATA

CONFIG = "configs/cora/coco_rn50.yaml"
CLASSES = 48
EMBEDDINGS = "MODEL.CLIP.TEXT_EMB_PATH"
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.CORA.NUM_QUERIES": "40",
    "MODEL.CORA.ENC_LAYERS": "1",
    "MODEL.CORA.DEC_LAYERS": "2",
    "MODEL.CORA.DROPOUT": "0.0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "256",
    "DATALOADER.NUM_WORKERS": "0",
}
TRAINED = OVERRIDES
