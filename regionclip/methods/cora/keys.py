"""Configuration keys of CORA; the published flags are named in parentheses."""

from __future__ import annotations

from regionclip.config.key import COUNT, FACTOR, NOT_NEGATIVE, POSITIVE_FACTOR, PROBABILITY, TEMPERATURE, Key, section

KEYS = section(
    "CORA",
    Key("MODEL.CORA.NUM_QUERIES", 1000, "learned anchors of an image (num_queries)", limits=COUNT),
    Key("MODEL.CORA.ENC_LAYERS", 3, "encoder layers (enc_layers)", limits=NOT_NEGATIVE),
    Key("MODEL.CORA.DEC_LAYERS", 6, "decoder layers (dec_layers)", limits=COUNT),
    Key("MODEL.CORA.NHEADS", 8, "attention heads (nheads)", limits=COUNT),
    Key("MODEL.CORA.DIM_FEEDFORWARD", 1024, "hidden width of feed-forward networks (dim_feedforward)", limits=COUNT),
    Key("MODEL.CORA.DROPOUT", 0.1, "of the transformer in training (dropout)", limits=PROBABILITY),
    Key("MODEL.CORA.INPUT_GROUP_NORM", False, "normalize the encoder's input; published with fewer than 25 epochs"),
    Key(
        "MODEL.CORA.GRID_TEMPERATURE",
        20.0,
        "of the position encoding of image cells (pe_temperature)",
        limits=TEMPERATURE,
    ),
    Key(
        "MODEL.CORA.TEXT_BOTTLENECK",
        128,
        "hidden width of the projection of class embeddings (condition_bottleneck)",
        limits=COUNT,
    ),
    Key(
        "MODEL.CORA.PREMATCHING_POOL",
        "published",
        "attention pool of pre-matching: 'published' without the mean token, 'exact' with it",
        choices=("published", "exact"),
    ),
    Key(
        "MODEL.CORA.SPLIT_PROBABILITY",
        0.2,
        "of class splitting in an iteration of training (split_class_p)",
        limits=PROBABILITY,
    ),
    Key(
        "MODEL.CORA.NOVEL_CLASSES",
        "",
        "class list, file, or names with commas, whose probability is multiplied",
        is_file=True,
        is_packed=True,
    ),
    Key(
        "MODEL.CORA.NOVEL_FACTOR",
        1.0,
        "that factor in pre-matching; published 8 (target_class_factor)",
        limits=POSITIVE_FACTOR,
    ),
    Key("MODEL.CORA.OBJECTNESS_POWER", 1.0, "exponent of the objectness in scores (objectness_alpha)", limits=FACTOR),
    Key("MODEL.CORA.CLIP_BOXES", True, "clip boxes to the image before NMS; published False"),
    Key("MODEL.CORA.COST.OBJECTNESS", 2.0, "weight in the matching cost (set_cost_class)", limits=FACTOR),
    Key("MODEL.CORA.COST.L1", 5.0, "weight in the matching cost (set_cost_bbox)", limits=FACTOR),
    Key("MODEL.CORA.COST.GIOU", 2.0, "weight in the matching cost (set_cost_giou)", limits=FACTOR),
    Key("MODEL.CORA.LOSS.OBJECTNESS", 2.0, "weight of the focal loss (cls_loss_coef)", limits=FACTOR),
    Key("MODEL.CORA.LOSS.L1", 5.0, "weight of the L1 loss of boxes (bbox_loss_coef)", limits=FACTOR),
    Key("MODEL.CORA.LOSS.GIOU", 2.0, "weight of the GIoU loss of boxes (giou_loss_coef)", limits=FACTOR),
    Key("MODEL.CORA.PSEUDO_BOXES", "", "pseudo boxes of further classes in training (pseudo_box)", is_file=True),
    Key("MODEL.CORA.PSEUDO_EMBEDDINGS", "", "embeddings, with names, of the classes in PSEUDO_BOXES", is_file=True),
    Key("MODEL.CORA.PROMPT_WEIGHTS", "", "file of a region prompt (region_prompt_path)", is_file=True),
)
