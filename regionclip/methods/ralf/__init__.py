"""RALF (Kim et al., CVPR 2024): losses and features augmented by retrieved words and concepts."""

from regionclip.method import Method
from regionclip.methods.ralf.keys import KEYS

METHOD = Method(
    name="ralf",
    title="Retrieval-Augmented Open-Vocabulary Object Detection",
    paper="https://arxiv.org/abs/2404.05687",
    license="MIT",
    meta_architectures={
        "DetPro": "regionclip.methods.ralf.detector",
        "ObjectCentricOVD": "regionclip.methods.ralf.object_centric",
    },
    keys=KEYS,
    add_ons=("MODEL.RALF.RAL.ENABLED", "MODEL.RALF.RAF.ENABLED"),
    checks="regionclip.methods.ralf.checks",
    checkpoints="regionclip.methods.ralf.checkpoints",
    zoo="regionclip.methods.ralf.zoo",
    records="regionclip.methods.ralf.records",
    region_features={"MODEL.META_ARCHITECTURE": ("DetPro", "ObjectCentricOVD")},
    commands="regionclip.methods.ralf.cli.commands",
)
