"""CORA's published detectors and files, all on Google Drive."""

from __future__ import annotations

from regionclip.published import PublishedFile, PublishedModel

DETECTOR_PAGE = "https://drive.google.com/file/d/{}/view"
PROMPT_FOLDER = "https://drive.google.com/drive/folders/17mi8O1YW6dl8TRkwectHRoC8xbK5sLMw"

_ANCHORS, _PROMPT = "query_embed.weight", "attnpool.positional_embedding"

MODELS = tuple(
    PublishedModel(
        f"cora_{size}",
        f"configs/cora/coco_{size}.yaml",
        f"cora/cora_{size}.pth",
        clip=clip,
        suffix=suffix,
    )
    for size, clip, suffix in (("rn50", "RN50", ""), ("rn50x4", "RN50x4", "_rn50x4"))
)

FILES = (
    PublishedFile(
        "cora/cora_rn50.pth",
        folder_url=DETECTOR_PAGE.format("1lQmFrbfaZutlA72gi-VOAHOvGuHSYMbo"),
        key=_ANCHORS,
        shape=(1000, 4),
    ),
    PublishedFile(
        "cora/cora_rn50x4.pth",
        folder_url=DETECTOR_PAGE.format("115osjVyv86vjG_b0W83vPQryXxdIDsv_"),
        key=_ANCHORS,
        shape=(1000, 4),
    ),
    PublishedFile("cora/region_prompt_R50.pth", folder_url=PROMPT_FOLDER, key=_PROMPT, shape=(50, 2048)),
    PublishedFile("cora/region_prompt_R50x4.pth", folder_url=PROMPT_FOLDER, key=_PROMPT, shape=(82, 2560)),
)
