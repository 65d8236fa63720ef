"""Configuration keys of LP-OVOD; the published flags are named in parentheses."""

from __future__ import annotations

from regionclip.config.key import EXPONENT, FACTOR, TEMPERATURE, Key, section

STAGES = ("base", "probe")
"""Values of MODEL.LP_OVOD.STAGE."""

KEYS = section(
    "LP-OVOD",
    Key(
        "MODEL.LP_OVOD.STAGE",
        "base",
        "what is trained: the detector on 'base' classes, or the prototypes of novel ones by linear 'probe'",
        choices=STAGES,
    ),
    Key(
        "MODEL.LP_OVOD.BASE_CLASSES",
        "coco48",
        "class list, file, or names with commas, of the base prototypes",
        is_file=True,
        is_packed=True,
    ),
    Key(
        "MODEL.LP_OVOD.NOVEL_CLASSES",
        "",
        "the same of the novel ones; they have prototypes from stage 'probe' on",
        is_file=True,
        is_packed=True,
    ),
    Key("MODEL.LP_OVOD.ALPHA", 0.0, "exponent of CLIP's probability of base classes (alpha)", limits=EXPONENT),
    Key("MODEL.LP_OVOD.BETA", 0.8, "exponent of the prototype's probability of novel classes (beta)", limits=EXPONENT),
    Key(
        "MODEL.LP_OVOD.NOVEL_TEMPERATURE", 1.0, "divides the logits of novel prototypes (test_temp)", limits=TEMPERATURE
    ),
    Key("MODEL.LP_OVOD.OBJECTNESS", True, "geometric mean of probability and objectness of the proposal"),
    Key(
        "MODEL.LP_OVOD.DISTILL_WEIGHT", 256.0, "of the distillation loss (kd_weight); 0 needs no REGIONS", limits=FACTOR
    ),
    Key("MODEL.LP_OVOD.REGIONS", "", "folder of `regionclip features`: CLIP's embeddings of proposals (feature_path)"),
)
