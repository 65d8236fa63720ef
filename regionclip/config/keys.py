"""Every yacs key beyond Detectron2's own, with its default and one line of meaning."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from regionclip.method import register


class Key(NamedTuple):
    """A configuration key."""

    name: str
    default: Any
    meaning: str


KEYS: tuple[Key, ...] = (
    Key("INPUT_DIR", "./datasets/custom_images", "folder of images of the *_custom_img datasets, or of concepts.txt"),
    Key("INPUT.TEXT_TOKENIZER", "openai_bpe", "tokenizer of the text tower; must contain 'bpe'"),
    # --- regions and their proposals
    Key("MODEL.CLIP.CROP_REGION_TYPE", "", "where proposals come from: 'GT' boxes or the offline 'RPN'"),
    Key("MODEL.CLIP.OFFLINE_RPN_CONFIG", None, "YAML that describes the detector whose RPN proposes"),
    Key("MODEL.CLIP.BB_RPN_WEIGHTS", None, "checkpoint of that detector; wins over proposer weights in MODEL.WEIGHTS"),
    Key("MODEL.CLIP.OFFLINE_RPN_NMS_THRESH", None, "IoU threshold of the proposer's NMS; None keeps its own"),
    Key("MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", None, "proposals per image; None keeps the proposer's own"),
    Key(
        "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED",
        False,
        "proposer trained with LSJ: SyncBN and 2-conv head",
    ),
    # --- towers
    Key("MODEL.CLIP.ARCHITECTURE", "", "CLIP size by name or open_clip JSON file; empty means RESNETS.DEPTH decides"),
    Key("MODEL.CLIP.GET_CONCEPT_EMB", False, "also build the text tower (lang_encoder)"),
    # --- classification
    Key("MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER", False, "True: classify regions against class embeddings"),
    Key("MODEL.CLIP.TEXT_EMB_PATH", None, "class embeddings [NUM_CLASSES, TEXT_EMB_DIM]"),
    Key("MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", None, "class embeddings [any, TEXT_EMB_DIM] at test time"),
    Key("MODEL.CLIP.TEXT_EMB_DIM", 1024, "width of the embeddings: 1024 RN50, 512 RN101, 640 RN50x4"),
    Key("MODEL.CLIP.CLSS_TEMP", 0.01, "temperature that divides the cosine similarities"),
    Key("MODEL.CLIP.NO_BOX_DELTA", False, "return proposals as boxes at inference; always so with GT boxes"),
    Key("MODEL.CLIP.MULTIPLY_RPN_SCORE", False, "fuse class probability and objectness at inference"),
    Key("MODEL.CLIP.RPN_SCORE_FUSION", "upstream", "'upstream': sqrt(p * logit); 'sigmoid': sqrt(p * sigmoid(logit))"),
    Key("MODEL.CLIP.VIS", False, "report the class probability instead of the fused score"),
    Key("MODEL.CLIP.VIS_BEHAVIOUR", "corrected", "'corrected': sorted by the reported score, soft-NMS too; 'upstream'"),
    Key(
        "MODEL.CLIP.INFERENCE_PRECISION",
        "float32",
        "'float32'; 'bfloat16' or 'float16': convolutions in half precision outside of training",
    ),
    Key(
        "MODEL.CLIP.INFERENCE_PRECISION_FROM",
        "res5",
        "first stage of the backbone in it, 'stem', 'res2', ...: more speed, more error",
    ),
    Key(
        "MODEL.CLIP.EMULATED_PRECISION",
        "replace",
        "on processors that emulate it: 'replace' by float32, with a line; 'error'; 'keep' it, slower than float32",
    ),
    # --- suppression
    Key("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", False, "soft-NMS instead of hard NMS"),
    Key("MODEL.ROI_HEADS.SOFT_NMS_METHOD", "gaussian", "'gaussian', 'linear' or 'hard'"),
    Key("MODEL.ROI_HEADS.SOFT_NMS_SIGMA", 0.5, "width of the Gaussian decay"),
    Key("MODEL.ROI_HEADS.SOFT_NMS_PRUNE", 0.001, "boxes whose decayed score falls to this or below are dropped"),
    Key("MODEL.ROI_HEADS.SOFT_NMS_CLASS_SEPARATION", "exact", "'exact', or 'upstream': by coordinate offsets"),
    # --- training losses
    Key("MODEL.CLIP.BG_CLS_LOSS_WEIGHT", None, "weight of background regions in the classification loss"),
    Key("MODEL.CLIP.FOCAL_SCALED_LOSS", None, "focal exponent of the classification loss; None is plain cross entropy"),
    Key("MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS", False, "sample only foreground regions in training"),
    # --- training
    Key("INPUT.SCALE_JITTER", (), "large-scale jitter: smallest and largest scale, such as (0.1, 2.0); () is off"),
    Key("INPUT.SCALE_JITTER_SIZE", 1024, "side in pixels of the square that jittered images are fitted to and cut by"),
    Key("MODEL.CLIP.PROPOSAL_CACHE", "", "folder that keeps the frozen proposer's boxes for later epochs; '' is off"),
    Key("MODEL_EMA.ENABLED", False, "keep, evaluate and save an exponential moving average of the weights"),
    Key("MODEL_EMA.DECAY", 0.999, "weight of the old average at each step"),
    Key("SOLVER.BEST_CHECKPOINT_METRIC", "", "metric, such as 'bbox/AP50', whose best weights go to model_best.pth"),
    # --- pretraining
    Key("MODEL.CLIP.PRETRAIN_IMG_TXT_LEVEL", True, "enable the image-text loss"),
    Key("MODEL.CLIP.PRETRAIN_ONLY_EOT", False, "pool a caption as the embedding of its end-of-text token"),
    Key("MODEL.CLIP.PRETRAIN_RPN_REGIONS", None, "proposals per image in pretraining"),
    Key("MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS", None, "random regions kept per image in pretraining; None keeps all"),
    Key("MODEL.CLIP.GATHER_GPUS", False, "gather image and text features of all processes"),
    Key("MODEL.CLIP.CONCEPT_POOL_EMB", None, "concept embeddings [C, D] of the student; enables region-concept losses"),
    Key("MODEL.CLIP.CONCEPT_THRES", None, "teacher probability above which a pseudo label is used"),
    Key("MODEL.CLIP.DISTILL_LOSS_WEIGHT", 1.0, "factor of the distillation from the teacher; 0 leaves it out"),
    Key("MODEL.CLIP.CONTRASTIVE_LOSS_WEIGHT", 1.0, "factor of the region-concept contrast; 0 leaves it out"),
    Key("MODEL.CLIP.TEACHER_CLSS_TEMP", 0.01, "divides the teacher's cosines; upstream fixes it"),
    Key("MODEL.CLIP.TEACHER_RESNETS_DEPTH", 50, "depth flag of the teacher"),
    Key("MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB", None, "the teacher's concepts; None means the student's"),
    Key("MODEL.CLIP.TEACHER_POOLER_RESOLUTION", 14, "RoIAlign side of the teacher"),
    Key("MODEL.CLIP.TEACHER_ARCHITECTURE", "", "the teacher's CLIP size by name or JSON; empty means its depth"),
    Key(
        "MODEL.CLIP.TEACHER_REGIONS",
        "aligned",
        "how the teacher sees regions: 'aligned', in the map of the image, as upstream; 'cropped', each as a picture",
    ),
    Key("MODEL.CLIP.TEACHER_WEIGHTS", "", "CLIP checkpoint of the teacher, where MODEL.WEIGHTS has none"),
    Key("MODEL.CLIP.GLOBAL_BOX", "image", "'image': the whole image; 'padded': the padded batch, as upstream"),
    Key(
        "MODEL.CLIP.CONTRASTIVE_REGIONS",
        "joined",
        "contrast regions of all processes; 'local': of one, as upstream",
    ),
    Key("SOLVER.OPTIMIZER", "SGD", "SGD as upstream, or ADAMW, which new towers need"),
    Key("SOLVER.GRADIENT_ACCUMULATION", 1, "parts that a batch is computed in, one after the other"),
    Key("DATASETS.LOG_SAMPLES", False, "write the ids of the images of each step to samples.jsonl"),
    Key("DATASETS.FACTORY_TRAIN", (), "classes of the pretraining datasets, parallel to DATASETS.TRAIN"),
    Key("DATASETS.PATH_TRAIN", (), "folders of the pretraining datasets, parallel to DATASETS.TRAIN"),
    Key("DATASETS.FACTORY_TEST", (), "classes of image-text test datasets"),
    Key("DATASETS.PATH_TEST", (), "folders of image-text test datasets"),
    Key("AUG.TRAIN.IMAGE_SIZE", [224, 224], "pretraining: two numbers crop, one number resizes the shorter side"),
    Key("AUG.TRAIN.MAX_SIZE", None, "pretraining: longest side with a one-number IMAGE_SIZE"),
    Key("AUG.SCALE", (0.08, 1.0), "pretraining: area range of random crops"),
    Key("AUG.RATIO", (3.0 / 4.0, 4.0 / 3.0), "pretraining: aspect range of random crops"),
    Key("AUG.INTERPOLATION", 3, "pretraining: PIL interpolation code (3 is bicubic)"),
    # --- dense transformer towers (branch zero-shot)
    Key("MODEL.TEXT.AUTOGRESSIVE", True, "causal text tower; False masks padding instead"),
    Key("MODEL.VIT.IMG_SIZE", 224, "side in pixels that the ViT's position table was made for"),
    Key("MODEL.SWIN.PATCH_SIZE", 4, "side of a patch"),
    Key("MODEL.SWIN.EMBED_DIM", 128, "channels of the first stage"),
    Key("MODEL.SWIN.DEPTHS", [2, 2, 18, 2], "blocks by stage"),
    Key("MODEL.SWIN.NUM_HEADS", [4, 8, 16, 32], "attention heads by stage"),
    Key("MODEL.SWIN.WINDOW_SIZE", 7, "side of an attention window"),
    Key("MODEL.SWIN.MLP_RATIO", 4.0, "hidden width of the MLPs"),
    Key("MODEL.FOCAL.PATCH_SIZE", 4, "stride of the stem"),
    Key("MODEL.FOCAL.EMBED_DIM", 128, "channels of the first stage"),
    Key("MODEL.FOCAL.DEPTHS", [2, 2, 18, 2], "blocks by stage"),
    Key("MODEL.FOCAL.FOCAL_LEVELS", [3, 3, 3, 3], "convolutions of a modulation, by stage"),
    Key("MODEL.FOCAL.FOCAL_WINDOWS", [3, 3, 3, 3], "side of the first of them, by stage"),
    Key("MODEL.FOCAL.MLP_RATIO", 4.0, "hidden width of the MLPs"),
    Key("MODEL.DAVIT.PATCH_SIZE", [7, 2, 2, 2], "side of the strided convolutions, by stage"),
    Key("MODEL.DAVIT.PATCH_STRIDE", [4, 2, 2, 2], "their strides"),
    Key("MODEL.DAVIT.PATCH_PADDING", [3, 0, 0, 0], "their paddings"),
    Key("MODEL.DAVIT.DIM_EMBED", [128, 256, 512, 1024], "channels by stage"),
    Key("MODEL.DAVIT.NUM_HEADS", [4, 8, 16, 32], "heads of the window attention, by stage"),
    Key("MODEL.DAVIT.NUM_GROUPS", [4, 8, 16, 32], "groups of the channel attention, by stage"),
    Key("MODEL.DAVIT.DEPTHS", [1, 1, 9, 1], "pairs of blocks by stage"),
    Key("MODEL.DAVIT.WINDOW_SIZE", 7, "side of an attention window"),
    # --- data and evaluation
    Key("DATASETS.LVIS_DROP_EMPTY_IMAGES", False, "upstream's LVIS filter: images without annotation are not tested"),
    Key("TEST.EVALUATION_BACKEND", "faster", "'faster' (faster-coco-eval) or 'official' (pycocotools, lvis)"),
)

FIXED_KEYS: tuple[Key, ...] = (
    Key("MODEL.SWIN.IN_CHANS", 3, "channels of an image"),
    Key("MODEL.SWIN.QKV_BIAS", True, "bias of queries, keys and values"),
    Key("MODEL.SWIN.QK_SCALE", False, "False scales queries by the square root of the head width"),
    Key("MODEL.SWIN.APE", False, "absolute position embedding"),
    Key("MODEL.SWIN.PATCH_NORM", True, "norm after the stem"),
    Key("MODEL.FOCAL.IN_CHANS", 3, "channels of an image"),
    Key("MODEL.FOCAL.PATCH_NORM", True, "norm after the stem"),
    Key("MODEL.FOCAL.USE_CONV_EMBED", True, "overlapping convolutions between the stages"),
    Key("MODEL.FOCAL.SCALING_MODULATOR", True, "modulator divided by the number of levels"),
    Key("MODEL.FOCAL.USE_POSTLN", True, "norms after the residual sums"),
    Key("MODEL.FOCAL.USE_POSTLN_IN_MODULATION", False, "norm in the modulation"),
    Key("MODEL.FOCAL.USE_LAYERSCALE", True, "learned scale of the residual branches"),
    Key("MODEL.DAVIT.PATCH_PRENORM", [False, True, True, True], "norm before the strided convolutions, by stage"),
    Key("MODEL.DAVIT.CONV_AT_ATTN", True, "depth-wise convolution before the attention"),
    Key("MODEL.DAVIT.CONV_AT_FFN", True, "depth-wise convolution before the MLP"),
    Key("MODEL.DAVIT.DYNAMIC_SCALE", True, "channel attention scaled by the number of tokens"),
)
"""Keys of the transformer towers that take one value: the published towers have no other."""

DEAD_KEYS: tuple[Key, ...] = (
    Key("MODEL.CLIP.IMS_PER_BATCH_TEST", 8, "read only for a meta-architecture that was removed"),
    Key("MODEL.CLIP.OPENSET_TEST_NUM_CLASSES", None, "the count is taken from the embedding file"),
    Key("MODEL.CLIP.RUN_CVPR_OVR", False, "never read"),
    Key("MODEL.CLIP.GRID_REGIONS", False, "never read"),
    Key("DATASETS.AUX", (), "unreachable"),
    Key("DATASETS.FACTORY_AUX", (), "unreachable"),
    Key("DATASETS.PATH_AUX", (), "unreachable"),
    Key("DATASETS.MAX_SEQ_LENGTH", 35, "captions always have 77 tokens"),
    Key("DATASETS.FILTERED_CLASSIFICATION_DATASETS", "", "ignored by the dataset it is passed to"),
    Key("DATASETS.LABELMAP_FILE", "", "never read"),
    Key("DATASETS.ATTR_LABELMAP_FILE", "", "never read"),
    Key("DATASETS.HIERARCHY_FILE", "", "never read"),
    Key("DATASETS.BOX_EXTRA_FIELDS", (), "never read"),
    Key("DATASETS.NUM_CLASSES", 0, "never read"),
    Key("DATASETS.ROOT", "", "never read"),
    Key("DATASETS.TRAIN_SET", "train", "never read"),
    Key("DATASETS.VAL_SET", "", "never read"),
    Key("DATASETS.TEST_SET", "val", "never read"),
    Key("MODEL.SWIN.OUT_FEATURES", ["stage2", "stage3", "stage4", "stage5"], "the head reads stage5"),
    Key("MODEL.FOCAL.OUT_FEATURES", ["stage2", "stage3", "stage4", "stage5"], "the head reads stage5"),
    Key("MODEL.DAVIT.OUT_FEATURES", ["stage2", "stage3", "stage4", "stage5"], "the head reads stage5"),
    Key("MODEL.VIT.OUT_FEATURES", ["stage5"], "the head reads stage5"),
    *(
        Key(f"MODEL.{tower}.{name}", 0.0, "these towers are not trained")
        for tower, names in {
            "SWIN": ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"),
            "FOCAL": ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"),
            "DAVIT": ("DROP_PATH_RATE",),
            "VIT": ("DROP_PATH_RATE",),
        }.items()
        for name in names
    ),
    Key("MODEL.FOCAL.USE_CHECKPOINT", False, "these towers are not trained"),
    Key("MODEL.DAVIT.ENABLE_CHECKPOINT", False, "these towers are not trained"),
    Key("MODEL.FOCAL.NUM_HEADS", [4, 8, 16, 32], "never read"),
    Key("MODEL.FOCAL.QKV_BIAS", True, "never read"),
    Key("MODEL.FOCAL.QK_SCALE", False, "never read"),
    Key("MODEL.FOCAL.APE", False, "never read"),
    Key("MODEL.VIT.NUM_CLASSES", 1000, "added a head that nothing used"),
    Key("AUG.USE_TIMM", False, "the branch behind it never worked"),
    Key("AUG.TIMM_AUG.USE_LOADER", False, "the branch behind it never worked"),
    Key("AUG.TIMM_AUG.USE_TRANSFORM", False, "the branch behind it never worked"),
    Key("AUG.COLOR_JITTER", [0.4, 0.4, 0.4, 0.1, 0.0], "never read"),
    Key("AUG.GRAY_SCALE", 0.0, "never read"),
    Key("AUG.GAUSSIAN_BLUR", 0.0, "never read"),
    Key("AUG.DROPBLOCK_LAYERS", [3, 4], "never read"),
    Key("AUG.DROPBLOCK_KEEP_PROB", 1.0, "never read"),
    Key("AUG.DROPBLOCK_BLOCK_SIZE", 7, "never read"),
    Key("AUG.MIXUP_PROB", 0.0, "never read"),
    Key("AUG.MIXUP", 0.0, "never read"),
    Key("AUG.MIXCUT", 0.0, "never read"),
    Key("AUG.MIXCUT_MINMAX", [], "never read"),
    Key("AUG.MIXUP_SWITCH_PROB", 0.5, "never read"),
    Key("AUG.MIXUP_MODE", "batch", "never read"),
    Key("AUG.MIXCUT_AND_MIXUP", False, "never read"),
    Key("AUG.TEST.IMAGE_SIZE", [224, 224], "never read"),
    Key("AUG.TEST.MAX_SIZE", None, "never read"),
    Key("AUG.TEST.CENTER_CROP", False, "never read"),
    Key("AUG.TEST.INTERPOLATION", 3, "never read"),
)
"""Keys of upstream that never had an effect: accepted, so that old files merge, warned about, and ignored."""


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with every key of `KEYS` and `FIXED_KEYS` added.

    Files and overrides that set a key of `DEAD_KEYS` merge; yacs warns and ignores the value. From then on
    Detectron2's registries know the parts of all methods, and its own `build_model` builds them.
    """
    register()
    cfg = get_detectron2_cfg()
    for key in KEYS + FIXED_KEYS:
        *parents, leaf = key.name.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        # Lists are copied: yacs would otherwise share one list among all configs.
        node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
    for key in DEAD_KEYS:
        cfg.register_deprecated_key(key.name)
    for node in ("AUG.TIMM_AUG", "AUG.TEST"):  # dead as a whole: a file gives them as mappings
        cfg.register_deprecated_key(node)
    return cfg


def get_value(cfg: CfgNode, name: str) -> Any:
    """Return the value behind the dotted key `name`."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg
