"""RegionCLIP's published detectors and files."""

from __future__ import annotations

from functools import partial

from regionclip.published import PublishedFile, PublishedModel

DRIVE_FOLDER = "https://drive.google.com/drive/folders/1hzrJBvcCrahoRcqJRqzkIGFO_HUSJIii"
"""RegionCLIP's files; Drive has no URL for a file in a folder, so they are downloaded by hand."""

_RN50X4 = (
    *("MODEL.CLIP.TEXT_EMB_DIM", "640", "MODEL.RESNETS.DEPTH", "200"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "18"),
)
_LVIS, _COCO = "configs/LVISv1-InstanceSegmentation", "configs/COCO-InstanceSegmentation"


def _models() -> list[PublishedModel]:
    models = []
    for model, size, suffix in (("rn50", (), ""), ("rn50x4", _RN50X4, "_rn50x4")):
        clip = {"rn50": "RN50", "rn50x4": "RN50x4"}[model]
        pretrained = f"regionclip/regionclip_pretrained-cc_{model}.pth"
        lvis = f"concept_emb/lvis_1203_cls_emb{suffix}.pth"
        fpn = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_LVIS}/mask_rcnn_R_50_FPN_1x.yaml")
        c4 = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_COCO}/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml")
        soft = ("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", "True")
        models += [
            # The published demo: the RPN comes from the main file.
            PublishedModel(
                f"regionclip_pretrained-cc_{model}",
                f"{_LVIS}/CLIP_fast_rcnn_R_50_C4_custom_img.yaml",
                pretrained,
                (*fpn, *size),
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
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
            ),
            PublishedModel(
                f"regionclip_finetuned-lvis_{model}",
                f"{_LVIS}/CLIP_fast_rcnn_R_50_C4.yaml",
                f"regionclip/regionclip_finetuned-lvis_{model}.pth",
                (*fpn, *soft, "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED", "True", *size),
                rpn_weights="rpn/rpn_lvis_866_lsj.pth",
                text_weights=f"clip/{clip}.pt",
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
            ),
        ]
    return models


_EMBEDDINGS = {
    "coco_65": 65,
    "coco_48_base": 48,
    "coco_17_target": 17,
    "lvis_1203": 1203,
    "lvis_866_base": 866,
}


def _files() -> list[PublishedFile]:
    by_hand = partial(PublishedFile, folder_url=DRIVE_FOLDER)
    files = []
    last = "backbone.attnpool.c_proj.weight"
    for model, suffix, clip, shape in (
        ("rn50", "", "RN50", (1024, 2048)),
        ("rn50x4", "_rn50x4", "RN50x4", (640, 2560)),
    ):
        for kind, text_encoder in (("pretrained-cc", clip), ("finetuned-coco", ""), ("finetuned-lvis", "")):
            path = f"regionclip/regionclip_{kind}_{model}.pth"
            files.append(by_hand(path, key=last, shape=shape, text_encoder=text_encoder))
        files.append(by_hand(f"clip/teacher_{clip}_student_{clip}_OAI_CLIP.pth", key=last, shape=shape))
        for stem, rows in _EMBEDDINGS.items():
            files.append(by_hand(f"concept_emb/{stem}_cls_emb{suffix}.pth", shape=(rows, shape[0])))
    anchors = "proposal_generator.rpn_head.objectness_logits.weight"
    for name, channels, cells in (
        *(("rpn_lvis_866", 256, 3), ("rpn_lvis_866_lsj", 256, 3)),
        *(("rpn_coco_48", 1024, 15), ("rpn_coco_65", 1024, 15), ("rpn_coco_80", 1024, 15)),
    ):
        files.append(by_hand(f"rpn/{name}.pth", key=anchors, shape=(cells, channels, 1, 1)))
    return files


MODELS, FILES = tuple(_models()), tuple(_files())
