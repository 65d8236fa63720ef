"""Configuration keys of RegionCLIP: pretraining, transformer image encoders, and those without effect."""

from __future__ import annotations

from regionclip.config.key import COUNT, FACTOR, NOT_NEGATIVE, PROBABILITY, TEMPERATURE, Key, section

PRETRAINING_KEYS = section(
    "Pretraining",
    Key("MODEL.CLIP.PRETRAIN_IMG_TXT_LEVEL", True, "enable the image-text loss"),
    Key(
        "MODEL.CLIP.PRETRAIN_ONLY_EOT",
        False,
        "pool a caption as its end-of-text token's embedding; True with the image-text loss",
    ),
    Key("MODEL.CLIP.PRETRAIN_RPN_REGIONS", None, "proposals per image in pretraining", limits=COUNT),
    Key(
        "MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS",
        None,
        "random regions kept per image in pretraining; None keeps all",
        limits=COUNT,
    ),
    Key("MODEL.CLIP.GATHER_GPUS", False, "gather image and text features of all processes"),
    Key(
        "MODEL.CLIP.NEGATIVE_CAPTIONS",
        0,
        "captions of other pairs per image, as more negatives in CLIP's training",
        limits=NOT_NEGATIVE,
    ),
    Key(
        "MODEL.CLIP.CONCEPT_POOL_EMB",
        None,
        "concept embeddings [C, D] of the student; enables region-concept losses",
        is_file=True,
    ),
    Key("MODEL.CLIP.CONCEPT_THRES", None, "teacher probability above which a pseudo label is used", limits=PROBABILITY),
    Key(
        "MODEL.CLIP.DISTILL_LOSS_WEIGHT",
        1.0,
        "factor of the distillation from the teacher; 0 leaves it out",
        limits=FACTOR,
    ),
    Key(
        "MODEL.CLIP.CONTRASTIVE_LOSS_WEIGHT",
        1.0,
        "factor of the region-concept contrast; 0 leaves it out",
        limits=FACTOR,
    ),
    Key("MODEL.CLIP.TEACHER_CLSS_TEMP", 0.01, "divides the teacher's cosines; upstream fixes it", limits=TEMPERATURE),
    Key("MODEL.CLIP.TEACHER_RESNETS_DEPTH", 50, "depth flag of the teacher"),
    Key("MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB", None, "the teacher's concepts; None means the student's", is_file=True),
    Key("MODEL.CLIP.TEACHER_POOLER_RESOLUTION", 14, "RoIAlign side of the teacher", limits=COUNT),
    Key(
        "MODEL.CLIP.TEACHER_ARCHITECTURE",
        "",
        "the teacher's CLIP size by name or JSON; empty means its depth",
        is_file=True,
    ),
    Key(
        "MODEL.CLIP.TEACHER_REGIONS",
        "aligned",
        "how the teacher sees regions: 'aligned', in the map of the image, as upstream; 'cropped', each as an image",
        choices=("aligned", "cropped"),
    ),
    Key("MODEL.CLIP.TEACHER_WEIGHTS", "", "CLIP checkpoint of the teacher, where MODEL.WEIGHTS has none", is_file=True),
    Key(
        "MODEL.CLIP.GLOBAL_BOX",
        "image",
        "'image': the whole image; 'padded': the padded batch, as upstream",
        choices=("image", "padded"),
    ),
    Key(
        "MODEL.CLIP.CONTRASTIVE_REGIONS",
        "joined",
        "contrast regions of all processes; 'local': of one, as upstream",
        choices=("joined", "local"),
    ),
)
"""Keys of region-text pretraining."""

TRANSFORMER_KEYS = section(
    "Transformer image encoders",
    Key("MODEL.TEXT.AUTOGRESSIVE", True, "causal text encoder; False masks padding instead"),
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
)
"""Keys of the zero-shot branch."""

FIXED_KEYS = section(
    "With one value",
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
"""Keys of the transformer image encoders that take one value: the published ones have no other."""

DEAD_KEYS = section(
    "Accepted without effect",
    Key("MODEL.CLIP.IMS_PER_BATCH_TEST", 8, "read only for a meta-architecture that was removed"),
    Key("MODEL.CLIP.OPENSET_TEST_NUM_CLASSES", None, "the count is taken from the embedding file"),
    Key("MODEL.CLIP.RUN_CVPR_OVR", False, "never read"),
    Key("MODEL.CLIP.GRID_REGIONS", False, "never read"),
    Key("DATASETS.FACTORY_TEST", (), "never read"),
    Key("DATASETS.PATH_TEST", (), "never read"),
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
        Key(f"MODEL.{encoder}.{name}", 0.0, "these encoders are not trained")
        for encoder, names in {
            "SWIN": ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"),
            "FOCAL": ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"),
            "DAVIT": ("DROP_PATH_RATE",),
            "VIT": ("DROP_PATH_RATE",),
        }.items()
        for name in names
    ),
    Key("MODEL.FOCAL.USE_CHECKPOINT", False, "these encoders are not trained"),
    Key("MODEL.DAVIT.ENABLE_CHECKPOINT", False, "these encoders are not trained"),
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

DEAD_NODES = ("AUG.TIMM_AUG", "AUG.TEST")
"""Nodes all of whose keys are dead."""

KEYS = (*PRETRAINING_KEYS, *TRANSFORMER_KEYS, *FIXED_KEYS)
