"""LP-OVOD's published detectors and files, and CLIP on crops from public addresses."""

from __future__ import annotations

from regionclip.published import PublishedFile, PublishedModel

_RELEASE = "https://github.com/VinAIResearch/LP-OVOD/releases/download/v1.0"

_STEM = "backbone.conv1.weight"

_SOCO = "drive://1z6Tb2MPFJDv9qpEyn_J0cJcXOguKTiL0"

MODELS = (
    PublishedModel(
        "lp_ovod_rn50",
        "configs/lp_ovod/coco_probe.yaml",
        "lp_ovod/vild_sigmoid_ft.pth",
        # The weights of the OLN that the published results stand on are not public.
        ("MODEL.CLIP.CROP_REGION_TYPE", ""),
        text_weights="clip/ViT-B-32.pt",
        clip="ViT-B/32",
        class_list="coco65",
        summary="LP-OVOD, trained on 48 COCO classes, probed for 17; here on proposals of its own RPN.",
        reported="COCO open-vocabulary, AP50 novel 40.5, base 60.5, on OLN's proposals (Pham et al. 2024)",
    ),
    PublishedModel(
        "crop_clip_vitb32",
        "configs/lp_ovod/crop_clip.yaml",
        "clip/ViT-B-32.safetensors",
        ("MODEL.CLIP.OFFLINE_RPN_CONFIG", "configs/COCO-Detection/rpn_R_50_FPN_1x.yaml"),
        rpn_weights="rpn/rpn_R_50_FPN_1x.pkl",
        clip="ViT-B/32",
        class_list="lvis",
        summary="OpenAI's CLIP ViT-B/32 on crops, slow; its RPN has seen boxes of all 80 COCO classes.",
    ),
)

FILES = (
    *(
        PublishedFile(
            f"lp_ovod/{name}",
            (f"{_RELEASE}/{name}",),
            key="roi_head.prototype",
            shape=(48, 1024),
            megabytes=300,
            license="AGPL-3.0",
        )
        for name in ("vild_sigmoid.pth", "vild_sigmoid_ft.pth")
    ),
    PublishedFile(
        "soco/soco_star_mask_rcnn_r50_fpn_400e.pth",
        (_SOCO,),
        key=_STEM,
        shape=(64, 3, 7, 7),
        megabytes=350,
        license="NOASSERTION",
    ),
)
