"""RegionCLIP's published detectors and files, and detectors of CLIP without region pretraining."""

from __future__ import annotations

from functools import partial
from typing import Any

from regionclip.published import PublishedFile, PublishedModel

DRIVE_FOLDER = "drive://folders/1hzrJBvcCrahoRcqJRqzkIGFO_HUSJIii"
"""RegionCLIP's files, in the sub-folders that they have here."""

SPACE = "hf://spaces/CVPR/regionclip-demo@58977af87e4baaf557fd041f9d852bdc8e2b6077"
"""The authors' demo on the hub."""

_RN50X4 = (
    *("MODEL.CLIP.TEXT_EMB_DIM", "640", "MODEL.RESNETS.DEPTH", "200"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "18"),
)
_LVIS, _COCO = "configs/LVISv1-InstanceSegmentation", "configs/COCO-InstanceSegmentation"
_FPN = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_LVIS}/mask_rcnn_R_50_FPN_1x.yaml")
_DEMO = f"{_LVIS}/CLIP_fast_rcnn_R_50_C4_custom_img.yaml"
"""Config of the published demo."""


def _regionclip() -> list[PublishedModel]:
    models = []
    for model, size, suffix in (("rn50", (), ""), ("rn50x4", _RN50X4, "_rn50x4")):
        clip = {"rn50": "RN50", "rn50x4": "RN50x4"}[model]
        pretrained = f"regionclip/regionclip_pretrained-cc_{model}.pth"
        lvis = f"concept_emb/lvis_1203_cls_emb{suffix}.pth"
        c4 = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_COCO}/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml")
        soft = ("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", "True")
        models += [
            # The published demo: the RPN comes from the main file.
            PublishedModel(
                f"regionclip_pretrained-cc_{model}",
                *(_DEMO, pretrained, (*_FPN, *size)),
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
                rank=2 if model == "rn50" else 1,
                summary=f"RegionCLIP {clip}, pretrained on CC3M; its RPN has seen boxes of 866 LVIS classes.",
            ),
            PublishedModel(
                f"regionclip_finetuned-coco_{model}",
                f"{_COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml",
                f"regionclip/regionclip_finetuned-coco_{model}.pth",
                (*c4, *soft, *size),
                rpn_weights="rpn/rpn_coco_48.pth",
                text_weights=f"clip/{clip}.pt",
                clip=clip,
                vocabulary=f"concept_emb/coco_65_cls_emb{suffix}.pth",
                suffix=suffix,
                summary=f"RegionCLIP {clip}, fine-tuned on boxes of 48 COCO classes.",
            ),
            PublishedModel(
                f"regionclip_finetuned-lvis_{model}",
                f"{_LVIS}/CLIP_fast_rcnn_R_50_C4.yaml",
                f"regionclip/regionclip_finetuned-lvis_{model}.pth",
                (*_FPN, *soft, "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED", "True", *size),
                rpn_weights="rpn/rpn_lvis_866_lsj.pth",
                text_weights=f"clip/{clip}.pt",
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
                summary=f"RegionCLIP {clip}, fine-tuned on boxes of 866 LVIS classes.",
            ),
        ]
    return models


_COCO_RPN = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", "configs/COCO-Detection/rpn_R_50_FPN_1x.yaml")
_SEEN = "its RPN has seen boxes of all 80 COCO classes: no figure of it on COCO is one of novel classes"


def _plain_clip() -> list[PublishedModel]:
    """Return detectors of public CLIP models and Detectron2's RPNs: every file has a stable address."""
    tiny = "configs/clip/tinyclip_rn19m.json"
    make = partial(PublishedModel, config=_DEMO, class_list="lvis")
    return [
        make(
            "clip_rn50",
            weights="clip/RN50.safetensors",
            overrides=_COCO_RPN,
            rpn_weights="rpn/rpn_R_50_FPN_1x.pkl",
            rank=4,
            summary=f"OpenAI's CLIP RN50 without region pretraining; {_SEEN}.",
        ),
        make(
            "clip_rn50x4",
            weights="clip/RN50x4.safetensors",
            overrides=(*_COCO_RPN, *_RN50X4),
            rpn_weights="rpn/rpn_R_50_FPN_1x.pkl",
            clip="RN50x4",
            suffix="_rn50x4",
            rank=3,
            summary=f"OpenAI's CLIP RN50x4 without region pretraining; {_SEEN}.",
        ),
        make(
            "clip_rn50_lvis_rpn",
            weights="clip/RN50.safetensors",
            overrides=_FPN,
            rpn_weights="rpn/lvis_v0.5_mask_rcnn_R_50_FPN_1x.pkl",
            rank=5,
            summary="OpenAI's CLIP RN50; its RPN has seen boxes of all LVIS classes, and finds more kinds of objects.",
        ),
        make(
            "tinyclip_rn19m",
            weights="clip/TinyCLIP-ResNet-19M-Text-19M-LAION400M.pt",
            overrides=(*_COCO_RPN, "MODEL.CLIP.ARCHITECTURE", tiny),
            rpn_weights="rpn/rpn_R_50_FPN_1x.pkl",
            clip=tiny,
            rank=6,
            summary=f"TinyCLIP, a third of RN50's size; {_SEEN}.",
            reported="ImageNet zero-shot top-1 56.4 of the CLIP (TinyCLIP's README)",
        ),
    ]


_EMBEDDINGS = {
    "coco_65": 65,
    "coco_48_base": 48,
    "coco_17_target": 17,
    "lvis_1203": 1203,
    "lvis_866_base": 866,
}

_ANCHORS = "proposal_generator.rpn_head.objectness_logits.weight"


def _on_drive(path: str, **known: Any) -> PublishedFile:
    return PublishedFile(path, (f"{DRIVE_FOLDER}/{path}",), **known)


def _regionclip_files() -> list[PublishedFile]:
    files = []
    last = "backbone.attnpool.c_proj.weight"
    for model, suffix, clip, shape, size in (
        ("rn50", "", "RN50", (1024, 2048), 800),
        ("rn50x4", "_rn50x4", "RN50x4", (640, 2560), 1170),
    ):
        known: dict[str, Any] = {"key": last, "shape": shape, "megabytes": size}
        for kind, text_encoder in (("pretrained-cc", clip), ("finetuned-coco", ""), ("finetuned-lvis", "")):
            path = f"regionclip/regionclip_{kind}_{model}.pth"
            instead = "regionclip/regionclip_r50x4.pth" if (kind, model) == ("pretrained-cc", "rn50x4") else ""
            files.append(_on_drive(path, text_encoder=text_encoder, instead=instead, **known))
        files.append(_on_drive(f"clip/teacher_{clip}_student_{clip}_OAI_CLIP.pth", **known))
        for stem, rows in _EMBEDDINGS.items():
            files.append(_on_drive(f"concept_emb/{stem}_cls_emb{suffix}.pth", shape=(rows, shape[0]), megabytes=5))
    for name, channels, cells, size in (
        *(("rpn_lvis_866", 256, 3, 180), ("rpn_lvis_866_lsj", 256, 3, 180)),
        *(("rpn_coco_48", 1024, 15, 130), ("rpn_coco_65", 1024, 15, 130), ("rpn_coco_80", 1024, 15, 130)),
    ):
        files.append(_on_drive(f"rpn/{name}.pth", key=_ANCHORS, shape=(cells, channels, 1, 1), megabytes=size))
    # Very likely the published RN50x4, from the authors' demo; the shapes are checked.
    copies = tuple(f"{space}/regionclip_r50x4.pth" for space in (SPACE, "hf://spaces/damian0815/regionclip-demo"))
    sha256 = "4e72bfa4759f84307b04fca917e07ddca4009cf80822f2ffe1263ecc2ad4d8bc"
    make = partial(PublishedFile, key=last, shape=(640, 2560), megabytes=1170, text_encoder="RN50x4")
    return [*files, make("regionclip/regionclip_r50x4.pth", copies, sha256=sha256)]


_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"


def _rpn_files() -> list[PublishedFile]:
    """Return RPNs of Detectron2's model zoo, which has the first digits of the MD5 in the file names."""
    make = partial(PublishedFile, key=_ANCHORS, shape=(3, 256, 1, 1), license="CC-BY-SA-3.0")
    lvis = "LVIS-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/144219072"
    return [
        make(path, (f"{_DETECTRON2}/{folder}/model_final_{md5}.pkl",), md5_prefix=md5, megabytes=size)
        for path, folder, md5, size in (
            ("rpn/rpn_R_50_FPN_1x.pkl", "COCO-Detection/rpn_R_50_FPN_1x/137258492", "02ce48", 110),
            ("rpn/lvis_v0.5_mask_rcnn_R_50_FPN_1x.pkl", lvis, "571f7c", 195),
        )
    ]


_TINY_CLIP = "https://github.com/wkcn/TinyCLIP-model-zoo/releases/download/checkpoints"


def _tiny_clip_file() -> PublishedFile:
    name = "TinyCLIP-ResNet-19M-Text-19M-LAION400M.pt"
    return PublishedFile(
        f"clip/{name}",
        (f"{_TINY_CLIP}/{name}",),
        key="attnpool.c_proj.weight",
        shape=(1024, 1408),
        megabytes=253,
        license="MIT",
        text_encoder="tinyclip_rn19m",
    )


MODELS = (*_regionclip(), *_plain_clip())
FILES = (*_regionclip_files(), *_rpn_files(), _tiny_clip_file())
