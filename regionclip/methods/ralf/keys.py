"""Configuration keys of RALF; the published names are in parentheses."""

from __future__ import annotations

from regionclip.config.key import COUNT, EXPONENT, FACTOR, NOT_NEGATIVE, TEMPERATURE, Key, section

KEYS = (
    *section(
        "RALF: losses (RAL)",
        Key("MODEL.RALF.RAL.ENABLED", False, "train RegionCLIP or DetPro with losses against negative words (use_ral)"),
        Key(
            "MODEL.RALF.RAL.STORE", "", "negative words of the classes, from `regionclip ralf` (ral_path)", is_file=True
        ),
        Key(
            "MODEL.RALF.RAL.CLASSES",
            "",
            "class list, file, or names with commas, of the labels of RegionCLIP; '' takes those of TEXT_EMB_PATH",
            is_file=True,
        ),
        Key("MODEL.RALF.RAL.NUM_SAMPLES", 10, "hard, and easy, negatives drawn for each box (random_q)", limits=COUNT),
        Key(
            "MODEL.RALF.RAL.LAMBDA_HARD",
            1.0,
            "factor on the cosine with hard negatives (triplet_lambda_sim)",
            limits=FACTOR,
        ),
        Key(
            "MODEL.RALF.RAL.LAMBDA_EASY",
            10.0,
            "factor on the cosine with easy negatives (triplet_lambda_dis)",
            limits=FACTOR,
        ),
        Key("MODEL.RALF.RAL.MARGIN_HARD", 0.0, "margin of the hard loss (triplet_margin_sim)"),
        Key("MODEL.RALF.RAL.MARGIN_EASY", 1.0, "margin of the easy loss (triplet_margin_dis)"),
        Key("MODEL.RALF.RAL.WEIGHT_HARD", 1.0, "weight of the hard loss (triplet_beta_sim)", limits=FACTOR),
        Key("MODEL.RALF.RAL.WEIGHT_EASY", 1.0, "weight of the easy loss (triplet_beta_dis)", limits=FACTOR),
    ),
    *section(
        "RALF: features (RAF)",
        Key("MODEL.RALF.RAF.ENABLED", False, "re-weight scores by concept-augmented embeddings (use_raf)"),
        Key(
            "MODEL.RALF.RAF.WEIGHTS", "", "weights of the augmenter, such as lvis_strict.pth (raf_weight)", is_file=True
        ),
        Key(
            "MODEL.RALF.RAF.CONCEPTS",
            "",
            "concept embeddings [N, D], from `regionclip ralf`",
            is_file=True,
            is_packed=True,
        ),
        Key("MODEL.RALF.RAF.NUM_CONCEPTS", 50, "concepts that are retrieved for a region (topk_concept)", limits=COUNT),
        Key(
            "MODEL.RALF.RAF.TOPK",
            20,
            "classes of a region whose cosines count, background among them (raf_topk)",
            limits=COUNT,
        ),
        Key(
            "MODEL.RALF.RAF.FUSION",
            "scale",
            "'scale': p * (sigmoid(z) - OFFSET), DetPro; 'log_add': softmax(log p + z), OADP; "
            "'prob_add': (p + sigmoid(z)) / 2, Object-Centric-OVD",
            choices=("scale", "log_add", "prob_add"),
        ),
        Key("MODEL.RALF.RAF.OFFSET", 0.25, "of FUSION scale"),
        Key(
            "MODEL.RALF.RAF.EMBEDDING",
            "crops",
            "what is augmented: 'crops', by a CLIP of its own; 'regions', the detector's region embeddings",
            choices=("crops", "regions"),
        ),
        Key(
            "MODEL.RALF.RAF.BOX_SOURCE",
            "proposal",
            "boxes of the crops: the 'proposal', or the 'final' box (Object-Centric-OVD)",
            choices=("proposal", "final"),
        ),
        Key(
            "MODEL.RALF.RAF.PIXEL_MODE",
            "clip",
            "crops in CLIP's normalization; 'detector': in the detector's (DetPro, OADP); "
            "'uint8': truncated, channels as they are (Object-Centric-OVD)",
            choices=("clip", "detector", "uint8"),
        ),
        Key(
            "MODEL.RALF.RAF.CLIP",
            "ViT-B/32",
            "size of the CLIP on crops, by name or open_clip JSON file",
            is_file=True,
            is_packed=True,
        ),
        Key("MODEL.RALF.RAF.CLIP_WEIGHTS", "", "checkpoint of the CLIP on crops", is_file=True),
    ),
    *section(
        "RALF: DetPro",
        Key(
            "MODEL.RALF.BASE_CLASSES",
            "lvis866",
            "class list, file, or names with commas, of the base classes",
            is_file=True,
            is_packed=True,
        ),
        Key(
            "MODEL.RALF.TEST_TEMPERATURE", 0.007, "divides the cosines of both heads in evaluation", limits=TEMPERATURE
        ),
        Key(
            "MODEL.RALF.ENSEMBLE_EXPONENT",
            1 / 3,
            "exponent of the distilled head for base classes, and of the text head for novel ones",
            limits=EXPONENT,
        ),
        Key("MODEL.RALF.DISTILL_WEIGHT", 256.0, "of the distillation loss; 0 needs no REGIONS", limits=FACTOR),
        Key("MODEL.RALF.REGIONS", "", "folder of `regionclip features`: CLIP's embeddings of proposals"),
    ),
    *section(
        "RALF: Object-Centric-OVD",
        Key("MODEL.RALF.CLASS_BIAS", 0.0, "added to the logits of classes: COCO 0, LVIS -4.6"),
        Key(
            "MODEL.RALF.TRANSFER_CHANNELS",
            0,
            "hidden width of the weight transfer function; 0: of the features",
            limits=NOT_NEGATIVE,
        ),
        Key(
            "MODEL.RALF.RESIDUAL_CHANNELS",
            0,
            "hidden width of the residual network; 0: of the features",
            limits=NOT_NEGATIVE,
        ),
    ),
)
