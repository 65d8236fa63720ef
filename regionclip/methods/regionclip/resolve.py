"""Values derived from several RegionCLIP config keys."""

from __future__ import annotations

from detectron2.config import CfgNode

from regionclip.clip.architectures import CLIPArchitecture, architecture_from_depth, get_architecture


def teacher_architecture(cfg: CfgNode) -> CLIPArchitecture:
    """Return the CLIP size of the teacher: TEACHER_ARCHITECTURE, else TEACHER_RESNETS_DEPTH.

    Raises:
        UserError: neither key names a known size.
    """
    clip = cfg.MODEL.CLIP
    if clip.TEACHER_ARCHITECTURE:
        return get_architecture(clip.TEACHER_ARCHITECTURE)
    return architecture_from_depth(clip.TEACHER_RESNETS_DEPTH)
