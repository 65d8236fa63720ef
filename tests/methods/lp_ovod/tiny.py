"""LP-OVOD in small, for the tests that every method passes."""

from regionclip.config.loading import load_config
from tests.helpers.detectors import flat
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

CONFIGS = {stage: f"configs/lp_ovod/coco_{stage}.yaml" for stage in ("base", "probe")}
TEACHER = "configs/lp_ovod/crop_clip.yaml"
TEACHER_OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.CLIP.OFFLINE_RPN_CONFIG": str(DATA / "tiny_rpn.yaml"),
    "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": "20",
    "DATASETS.TEST": "()",
    "DATALOADER.NUM_WORKERS": "0",
}
FAST = {"SOLVER__BASE_LR": 0.01, "SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": "()", "SOLVER__MAX_ITER": 12}


def settings(world, stage, **overrides):
    """Return the overrides of a short training of a stage in a folder with stored regions and, to probe, weights."""
    model = {key.replace(".", "__"): value for key, value in OVERRIDES.items() if key.startswith("MODEL.")}
    names = {"base": {"BASE_CLASSES": "person,car,dog", "NOVEL_CLASSES": "cat"}}
    names["probe"] = {"BASE_CLASSES": "cat,horse", "NOVEL_CLASSES": "car,dog"}
    own = {f"MODEL__LP_OVOD__{key}": value for key, value in names[stage].items()}
    own |= {"MODEL__WEIGHTS": str(world / "base.pth")} if stage == "probe" else {}
    own |= {"MODEL__LP_OVOD__REGIONS": str(world / "regions")} if stage == "base" else {}
    return {
        "config": CONFIGS[stage],
        **model,
        **FAST,
        "MODEL__CLIP__CROP_REGION_TYPE": "",
        "MODEL__CLIP__OFFLINE_RPN_CONFIG": "",
        "MODEL__CLIP__TEXT_EMB_PATH": "",
        "DATASETS__TEST": "()",
        **own,
        **overrides,
    }


def config(base=CONFIG, options=OVERRIDES, **overrides):
    """Return the config of a tiny detector without class embeddings."""
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(base, flat(options | {"DATASETS.TEST": "()"} | changes))
