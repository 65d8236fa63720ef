"""Training records of DetPro: with stored embeddings of proposals."""

from __future__ import annotations

from detectron2.config import CfgNode

from regionclip.config.resolve import clip_architecture
from regionclip.data.region_features.training import with_stored_embeddings
from regionclip.records import Record


def extend_records(cfg: CfgNode, records: list[Record]) -> list[Record]:
    """Return the records with the `stored_regions` of their images, if there is a distillation loss.

    Raises:
        UserError: no such folder, embeddings of another CLIP, or an image without regions.
    """
    if cfg.MODEL.META_ARCHITECTURE != "DetPro" or not cfg.MODEL.RALF.DISTILL_WEIGHT:
        return records
    key, path = "MODEL.RALF.REGIONS", cfg.MODEL.RALF.REGIONS
    return with_stored_embeddings(records, path, key, clip_architecture(cfg).name, cfg.MODEL.CLIP.TEXT_EMB_DIM)
