"""Published detectors and files of RALF and DetPro, on Google Drive; sizes are estimates where they are not published.

The names of the files in RALF's folders are those that its instructions use.
"""

from __future__ import annotations

from regionclip.published import PublishedFile, PublishedModel

_DETPRO, _CENTRIC = "1vKMwGkjqUV6u3AQNzT8Lxsa4VcQ0CkdL", "1iiXRx8NFL7sMlpuRwaXacvAm3rTzq-b2"
_AUGMENTERS = "1R8k62o2KAbHQqtOpnXTTkwFoUtTCy6_l"
_PROMPTS = ("drive://1T-Ydo0YgneDbZYU2hu3wWm9MZ2plxGT_", "drive://1OYvyCQ_y65oq6SDJQKrVm3syzvXStL-0")

MODELS = (
    PublishedModel(
        "ralf_detpro_rn50",
        "configs/ralf/detpro_lvis.yaml",
        "ralf/detpro_ral_epoch_20.pth",
        text_weights="clip/ViT-B-32.pt",
        clip="ViT-B/32",
        vocabulary="detpro/iou_neg5_ens.pth",
        summary="DetPro with RALF's losses, trained on boxes of 866 LVIS classes.",
        reported="LVIS, mask AP of rare classes 21.3; DetPro alone 19.8 (Kim et al. 2024)",
    ),
)

FILES = (
    PublishedFile(
        "ralf/detpro_ral_epoch_20.pth",
        (f"drive://folders/{_DETPRO}/epoch_20.pth",),
        key="roi_head.bg_embedding.weight",
        shape=(512, 1),
        megabytes=400,
        license="MIT",
    ),
    PublishedFile(
        "detpro/iou_neg5_ens.pth",
        _PROMPTS,
        sha256="37544c96ff650cd4be4b794c763d33c9f8c7fee86ad8fde85225a3521b3a8d37",
        shape=(1203, 512),
        megabytes=3,
        license="NOASSERTION",
    ),
    *(
        PublishedFile(
            f"ralf/{data}_strict.pth",
            (f"drive://folders/{_AUGMENTERS}/{data}_strict.pth",),
            key="class_embedding",
            shape=(1, 512),
            megabytes=102,
            license="MIT",
        )
        for data in ("coco", "lvis")
    ),
    *(
        PublishedFile(
            f"ralf/object_centric_{data}_ral.pth",
            (f"drive://folders/{_CENTRIC}/{data}_ral.pth",),
            key="roi_heads.box_predictor.cls_score.linear.weight",
            shape=(512, width),
            megabytes=300,
            license="MIT",
        )
        for data, width in (("coco", 2048), ("lvis", 1024))
    ),
)
