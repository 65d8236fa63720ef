"""CORA's published detectors and files, all on Google Drive; sizes are estimates."""

from __future__ import annotations

from regionclip.published import PublishedFile, PublishedModel

_PROMPTS = "drive://folders/17mi8O1YW6dl8TRkwectHRoC8xbK5sLMw"

_ANCHORS, _PROMPT = "query_embed.weight", "attnpool.positional_embedding"

MODELS = tuple(
    PublishedModel(
        f"cora_{size}",
        f"configs/cora/coco_{size}.yaml",
        f"cora/cora_{size}.pth",
        clip=clip,
        suffix=suffix,
        summary=f"CORA on CLIP {clip}: a localizer trained on boxes of 48 COCO classes.",
        reported=f"COCO open-vocabulary, AP50 novel {novel} (Wu et al. 2023)",
    )
    for size, clip, suffix, novel in (("rn50", "RN50", "", 35.1), ("rn50x4", "RN50x4", "_rn50x4", 41.7))
)

FILES = (
    *(
        PublishedFile(
            f"cora/cora_{size}.pth", (f"drive://{drive_id}",), key=_ANCHORS, shape=(1000, 4), megabytes=size_mb
        )
        for size, drive_id, size_mb in (
            ("rn50", "1lQmFrbfaZutlA72gi-VOAHOvGuHSYMbo", 900),
            ("rn50x4", "115osjVyv86vjG_b0W83vPQryXxdIDsv_", 1500),
        )
    ),
    *(
        PublishedFile(f"cora/{name}", (f"{_PROMPTS}/{name}",), key=_PROMPT, shape=shape, megabytes=1)
        for name, shape in (("region_prompt_R50.pth", (50, 2048)), ("region_prompt_R50x4.pth", (82, 2560)))
    ),
)
