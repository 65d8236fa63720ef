"""Every yacs key beyond Detectron2's own, with its default and one line of meaning."""

from __future__ import annotations

from functools import cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from regionclip.config.key import (
    COUNT,
    FACTOR,
    FRACTION,
    IOU,
    LOG_ODDS,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    TEMPERATURE,
    Key,
    section,
)
from regionclip.method import methods, register

KEYS: tuple[Key, ...] = (
    *section(
        "General",
        Key(
            "INPUT_DIR", "./datasets/custom_images", "folder of images of the *_custom_img datasets, or of concepts.txt"
        ),
        Key(
            "INPUT.DOMAIN",
            "",
            "what the images of the training were: 'drawings' warns about photographs",
            choices=("", "drawings"),
        ),
        Key("INPUT.TEXT_TOKENIZER", "openai_bpe", "tokenizer of the text encoder; must contain 'bpe'"),
    ),
    *section(
        "Regions and proposals",
        Key(
            "MODEL.CLIP.CROP_REGION_TYPE",
            "",
            "where proposals come from: 'GT' boxes, the offline 'RPN', 'RANDOM' boxes (pretraining), 'GRID' cells, "
            "a 'FILE' of boxes; 'NONE': only user boxes",
        ),
        Key(
            "MODEL.CLIP.PROPOSAL_FILE",
            "",
            "boxes of CROP_REGION_TYPE FILE: JSON, npz, or a folder of region features (docs/features.md)",
            is_file=True,
        ),
        Key(
            "MODEL.RPN.MIN_POS_IOU",
            0.0,
            "IoU from which an object without positive anchor gets its best ones: 0 always, published LP-OVOD 0.3",
            limits=IOU,
        ),
        Key("MODEL.CLIP.OFFLINE_RPN_CONFIG", None, "YAML that describes the detector whose RPN proposes", is_file=True),
        Key(
            "MODEL.CLIP.BB_RPN_WEIGHTS",
            None,
            "checkpoint of that detector; wins over RPN weights in MODEL.WEIGHTS",
            is_file=True,
        ),
        Key(
            "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH", None, "IoU threshold of the RPN's NMS; None keeps its own", limits=IOU
        ),
        Key(
            "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST",
            None,
            "proposals per image; None keeps the RPN's own",
            limits=COUNT,
        ),
        Key(
            "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED",
            False,
            "RPN trained with LSJ: SyncBN and 2-conv head",
        ),
    ),
    *section(
        "Ensemble of heads",
        Key(
            "MODEL.ENSEMBLE.NEGATIVES_PER_POSITIVE",
            -1,
            "limit of sampled background regions for each object region of an image; -1 has none (neg_pos_ub)",
        ),
        Key(
            "MODEL.ENSEMBLE.LOW_QUALITY_MATCHES",
            False,
            "an object also gets its regions of highest IoU, even if they overlap another more (published RALF)",
        ),
    ),
    *section(
        "OLN",
        Key("MODEL.OLN.BOX_ON", True, "with the box head, which refines boxes and scores them by their IoU"),
        Key(
            "MODEL.OLN.OBJ_TARGET",
            "centerness",
            "quality that the RPN regresses: 'centerness', or 'iou' of anchor and object",
            choices=("centerness", "iou"),
        ),
        Key(
            "MODEL.OLN.OBJ_IOU_THRESHOLDS",
            [0.1, 0.3],
            "loss of the quality: anchors below the first IoU are negative, from the second on positive",
        ),
        Key("MODEL.OLN.OBJ_BATCH", 256, "anchors per image that are sampled for the loss of the quality", limits=COUNT),
        Key("MODEL.OLN.OBJ_POSITIVE_FRACTION", 1.0, "highest fraction of positive ones", limits=FRACTION),
        Key("MODEL.OLN.OBJ_FILL_NEGATIVES", True, "take negative anchors, of quality 0, for the rest, as published"),
        Key("MODEL.OLN.MIN_POS_IOU", 0.3, "an object takes its best anchors if their IoU is at least this", limits=IOU),
        Key("MODEL.OLN.BOX_LOSS_WEIGHT", 10.0, "of the IoU loss of the RPN's boxes", limits=FACTOR),
        Key("MODEL.OLN.OBJ_LOSS_WEIGHT", 1.0, "of the L1 loss of the RPN's quality", limits=FACTOR),
        Key("MODEL.OLN.SKIP_BORDER_GT", True, "no box loss for objects at the left or top border, as published"),
        Key("MODEL.OLN.REG_BIAS_INIT", 0.0, "initial distances of the RPN: published 0; 0.5 starts with the anchors"),
        Key(
            "MODEL.OLN.SCORE_TARGET",
            "iou",
            "quality that the box head regresses: 'iou', or 'centerness'",
            choices=("iou", "centerness"),
        ),
        Key("MODEL.OLN.SCORE_LOSS_WEIGHT", 1.0, "of the L1 loss of the box head's quality", limits=FACTOR),
        Key("MODEL.OLN.SCORE_THRESH", 0.0, "proposals have a higher score"),
    ),
    *section(
        "CLIP",
        Key(
            "MODEL.CLIP.ARCHITECTURE",
            "",
            "CLIP size by name or open_clip JSON file; empty means RESNETS.DEPTH decides",
            is_file=True,
            is_packed=True,
        ),
        Key("MODEL.CLIP.GET_CONCEPT_EMB", False, "also build the text encoder (lang_encoder)"),
    ),
    *section(
        "Classification",
        Key("MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER", False, "True: classify regions against class embeddings"),
        Key("MODEL.CLIP.TEXT_EMB_PATH", None, "class embeddings [NUM_CLASSES, TEXT_EMB_DIM]", is_file=True),
        Key(
            "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH",
            None,
            "class embeddings [any, TEXT_EMB_DIM] at test time",
            is_file=True,
        ),
        Key("MODEL.CLIP.TEXT_EMB_DIM", 1024, "width of the embeddings: 1024 RN50, 512 RN101, 640 RN50x4", limits=COUNT),
        Key("MODEL.CLIP.CLSS_TEMP", 0.01, "temperature that divides the cosine similarities", limits=TEMPERATURE),
        Key("MODEL.CLIP.NO_BOX_DELTA", False, "return proposals as boxes at inference; always so with GT boxes"),
        Key("MODEL.CLIP.MULTIPLY_RPN_SCORE", False, "fuse class probability and objectness at inference"),
        Key(
            "MODEL.CLIP.SHOWN_SCORES",
            "unit",
            "scores of detect, the Python API and reports: 'unit' in [0, 1], 'published' as evaluation has them",
            choices=("unit", "published"),
        ),
        Key(
            "MODEL.CLIP.SCORE_TEMPERATURE",
            1.0,
            "divides the log odds of shown scores; the evaluation page fits it",
            limits=TEMPERATURE,
        ),
        Key("MODEL.CLIP.SCORE_BIAS", 0.0, "is added to these log odds after that; fitted, too", limits=LOG_ODDS),
        Key(
            "MODEL.CLIP.RPN_SCORE_FUSION",
            "upstream",
            "'upstream': sqrt(p * logit); 'sigmoid': sqrt(p * sigmoid(logit))",
            choices=("upstream", "sigmoid"),
        ),
        Key("MODEL.CLIP.VIS", False, "report the class probability instead of the fused score"),
        Key(
            "MODEL.CLIP.VIS_BEHAVIOUR",
            "corrected",
            "'corrected': sorted by the reported score, soft-NMS too; 'upstream'",
            choices=("corrected", "upstream"),
        ),
        Key(
            "MODEL.CLIP.INFERENCE_PRECISION",
            "float32",
            "'float32'; 'bfloat16' or 'float16': convolutions in half precision outside of training",
            choices=("float32", "bfloat16", "float16"),
        ),
        Key(
            "MODEL.CLIP.INFERENCE_PRECISION_FROM",
            "res5",
            "first stage of the backbone in it, 'stem', 'res2', ...: more speed, more error",
            choices=("stem", "res2", "res3", "res4", "res5"),
        ),
        Key(
            "MODEL.CLIP.EMULATED_PRECISION",
            "replace",
            "on processors that emulate it: 'replace' by float32, with a line; 'error'; 'keep' it, slower than float32",
            choices=("replace", "error", "keep"),
        ),
    ),
    *section(
        "Suppression",
        Key("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", False, "soft-NMS instead of hard NMS"),
        Key(
            "MODEL.ROI_HEADS.NMS_ACROSS_CLASSES", False, "evaluate as detect does: an object keeps only its best class"
        ),
        Key(
            "MODEL.ROI_HEADS.SOFT_NMS_METHOD",
            "gaussian",
            "'gaussian', 'linear' or 'hard'",
            choices=("gaussian", "linear", "hard"),
        ),
        Key("MODEL.ROI_HEADS.SOFT_NMS_SIGMA", 0.5, "width of the Gaussian decay", limits=POSITIVE),
        Key(
            "MODEL.ROI_HEADS.SOFT_NMS_PRUNE",
            0.001,
            "boxes whose decayed score falls to this or below are dropped",
            limits=NOT_NEGATIVE,
        ),
        Key(
            "MODEL.ROI_HEADS.SOFT_NMS_CLASS_SEPARATION",
            "exact",
            "'exact', or 'upstream': by coordinate offsets",
            choices=("exact", "upstream"),
        ),
    ),
    *section(
        "Losses",
        Key(
            "MODEL.CLIP.BG_CLS_LOSS_WEIGHT",
            None,
            "weight of background regions in the classification loss",
            limits=FACTOR,
        ),
        Key(
            "MODEL.CLIP.FOCAL_SCALED_LOSS",
            None,
            "focal exponent of the classification loss; None is plain cross entropy",
            limits=FACTOR,
        ),
        Key("MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS", False, "sample only foreground regions in training"),
    ),
    *section(
        "Training",
        Key(
            "MODEL.RESNETS.NORM_EVAL",
            False,
            "batch normalization of the backbone keeps its running statistics; scale and shift are trained",
        ),
        Key(
            "INPUT.CROP_FIRST",
            0.0,
            "probability of DETR's crop of 384 to 600 pixels before an image is resized",
            limits=PROBABILITY,
        ),
        Key("INPUT.SCALE_JITTER", (), "large-scale jitter: smallest and largest scale, such as (0.1, 2.0); () is off"),
        Key(
            "INPUT.SCALE_JITTER_SIZE",
            1024,
            "side in pixels of the square that jittered images are fitted to and cut by",
            limits=COUNT,
        ),
        Key(
            "MODEL.CLIP.PROPOSAL_CACHE", "", "folder that keeps the boxes of the frozen RPN for later epochs; '' is off"
        ),
        Key("MODEL_EMA.ENABLED", False, "keep, evaluate and save an exponential moving average of the weights"),
        Key("MODEL_EMA.DECAY", 0.999, "weight of the old average at each step", limits=FRACTION),
        Key("MODEL_EMA.WARMUP", False, "let the decay grow from 0.1 in the first iterations, for short runs"),
        Key(
            "SOLVER.BEST_CHECKPOINT_METRIC", "", "metric, such as 'bbox/AP50', whose best weights go to model_best.pth"
        ),
        Key(
            "SOLVER.OPTIMIZER",
            "SGD",
            "SGD as upstream; ADAMW for encoders from scratch",
            choices=("SGD", "ADAMW"),
        ),
        Key(
            "SOLVER.ADAM_BETAS",
            (0.9, 0.98),
            "AdamW's decays of averaged gradients and squares; CLIP's by default",
        ),
        Key("SOLVER.ADAM_EPSILON", 1e-6, "added to AdamW's divisor; CLIP's by default", limits=POSITIVE),
        Key("SOLVER.GRADIENT_ACCUMULATION", 1, "parts that a batch is computed in, one after the other"),
        Key(
            "DATASETS.FOLDER",
            "",
            "folder that `regionclip train --data` wrote: registers its `own_train` and `own_test` in every process",
        ),
        Key("DATASETS.LOG_SAMPLES", False, "write the ids of the images of each step to samples.jsonl"),
        Key("DATASETS.FACTORY_TRAIN", (), "classes of the pretraining datasets, parallel to DATASETS.TRAIN"),
        Key("DATASETS.PATH_TRAIN", (), "folders of the pretraining datasets, parallel to DATASETS.TRAIN"),
        Key("AUG.TRAIN.IMAGE_SIZE", [224, 224], "pretraining: two numbers crop, one number resizes the shorter side"),
        Key("AUG.TRAIN.MAX_SIZE", None, "pretraining: longest side with a one-number IMAGE_SIZE", limits=COUNT),
        Key(
            "AUG.TRAIN.FLIP_PROBABILITY",
            0.5,
            "pretraining: of mirroring an image; 0.0 if captions tell left from right",
            limits=PROBABILITY,
        ),
        Key("AUG.SCALE", (0.08, 1.0), "pretraining: area range of random crops"),
        Key("AUG.RATIO", (3.0 / 4.0, 4.0 / 3.0), "pretraining: aspect range of random crops"),
        Key("AUG.INTERPOLATION", 3, "pretraining: PIL interpolation code (3 is bicubic)"),
    ),
    *section(
        "Data and evaluation",
        Key(
            "DATASETS.LVIS_DROP_EMPTY_IMAGES", False, "upstream's LVIS filter: images without annotation are not tested"
        ),
        Key("TEST.PAGE", True, "write report.html, the page of an evaluation, after --eval-only on annotated images"),
        Key("TEST.EVALUATE_PROPOSALS", False, "evaluate the recall of the detector's proposals, not its detections"),
        Key(
            "TEST.RECALL_PROTOCOL",
            "coco",
            "of proposals: 'coco'; 'oln' adds novel objects, with proposals of base objects removed before counting",
            choices=("coco", "oln"),
        ),
        Key(
            "TEST.EVALUATION_BACKEND",
            "faster",
            "'faster' (faster-coco-eval) or 'official' (pycocotools, lvis)",
            choices=("faster", "official"),
        ),
    ),
)
"""Keys that no method owns."""


@cache
def all_keys() -> tuple[Key, ...]:
    """Return the keys of this package and of all methods."""
    return (*KEYS, *(key for method in methods() for key in method.keys))


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with every key of this package and of its methods added.

    Files and overrides that set a key that never had an effect upstream merge; yacs warns and ignores the value.
    From then on Detectron2's registries know the parts of all methods, and its own `build_model` builds them.
    """
    register()
    cfg = get_detectron2_cfg()
    for key in all_keys():
        *parents, leaf = key.name.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        # Lists are copied: yacs would otherwise share one list among all configs.
        node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
    for method in methods():
        for key in method.dead_keys:
            cfg.register_deprecated_key(key.name)
        for node in method.dead_nodes:  # a file gives them as mappings
            cfg.register_deprecated_key(node)
    return cfg


def get_value(cfg: CfgNode, name: str) -> Any:
    """Return the value behind the dotted key `name`."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def known_names(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Return the dotted names of all keys of a config, those of Detectron2 too."""
    names: list[str] = []
    for name, value in cfg.items():
        names += known_names(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"]
    return names
