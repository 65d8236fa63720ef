"""LP-OVOD (Pham et al., WACV 2024): retrieval of proposals by class names, and linear probing for novel classes."""

from regionclip.method import Method
from regionclip.methods.lp_ovod.keys import KEYS

METHOD = Method(
    name="lp_ovod",
    title="LP-OVOD: Open-Vocabulary Object Detection by Linear Probing",
    paper="https://arxiv.org/abs/2310.17109",
    license="AGPL-3.0",
    meta_architectures={
        "LPOVOD": "regionclip.methods.lp_ovod.detector",
        "CropCLIP": "regionclip.methods.lp_ovod.crop_clip",
    },
    half_precision=(("CropCLIP",),),
    keys=KEYS,
    checks="regionclip.methods.lp_ovod.checks",
    checkpoints="regionclip.methods.lp_ovod.checkpoints",
    zoo="regionclip.methods.lp_ovod.zoo",
    region_features={"MODEL.META_ARCHITECTURE": ("CropCLIP", "LPOVOD")},
    commands="regionclip.methods.lp_ovod.cli.commands",
    records="regionclip.methods.lp_ovod.records",
)
