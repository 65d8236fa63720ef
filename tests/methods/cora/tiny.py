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

STAGES = {"localizer": "configs/cora/coco_rn50.yaml", "prompt": "configs/cora/region_coco_rn50.yaml"}
FAST = {"SOLVER__OPTIMIZER": "ADAMW", "SOLVER__BASE_LR": 0.001, "SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": "()"}


def settings(world, stage, **overrides):
    """Return the overrides of a short training of a stage in a folder with `clip.pth`."""
    model = {key.replace(".", "__"): value for key, value in OVERRIDES.items() if key.startswith("MODEL.")}
    source = "GT" if stage == "prompt" else ""
    return {
        "config": STAGES[stage],
        **model,
        **FAST,
        "MODEL__WEIGHTS": str(world / "clip.pth"),
        "MODEL__CLIP__CROP_REGION_TYPE": source,
        "MODEL__CLIP__OFFLINE_RPN_CONFIG": "",
        "INPUT__CROP_FIRST": 0.0,
        "SOLVER__MAX_ITER": 12,
        **overrides,
    }
