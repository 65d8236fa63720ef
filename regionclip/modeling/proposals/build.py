"""Build the proposal source of a config."""

from __future__ import annotations

from detectron2.config import CfgNode

from regionclip.errors import user_error
from regionclip.modeling.proposals.cache import CachedProposals
from regionclip.modeling.proposals.generated_boxes import GridBoxes, RandomBoxes
from regionclip.modeling.proposals.sources import (
    GroundTruthProposals,
    NoProposals,
    ProposalSource,
    RecordProposals,
    RPNProposals,
    build_offline_rpn,
)

SOURCES = ("GT", "RPN", "RANDOM", "GRID", "FILE", "NONE")
"""Values of MODEL.CLIP.CROP_REGION_TYPE."""


def build_proposal_source(cfg: CfgNode, *, rpn_proposals: int | None = None) -> ProposalSource:
    """Build the proposal source that MODEL.CLIP.CROP_REGION_TYPE names.

    GT are ground-truth boxes; RPN the proposals of the offline RPN, cached with PROPOSAL_CACHE; RANDOM
    (PRETRAIN_SAMPLE_REGIONS boxes) and GRID need no RPN; FILE are the boxes of PROPOSAL_FILE; NONE has no proposals,
    for detectors that only embed and classify user boxes.

    Args:
        cfg: config of the detector.
        rpn_proposals: proposals of the RPN per image; None takes OFFLINE_RPN_POST_NMS_TOPK_TEST.

    Raises:
        UserError: an unknown name.
    """
    clip = cfg.MODEL.CLIP
    match clip.CROP_REGION_TYPE:
        case "GT":
            return GroundTruthProposals()
        case "RPN":
            rpn = build_offline_rpn(cfg, rpn_proposals)
            return CachedProposals(rpn, clip.PROPOSAL_CACHE) if clip.PROPOSAL_CACHE else rpn
        case "RANDOM":
            return RandomBoxes(clip.PRETRAIN_SAMPLE_REGIONS)
        case "GRID":
            return GridBoxes()
        case "FILE":
            return RecordProposals()
        case "NONE":
            return NoProposals()
    fix = "add MODEL.CLIP.CROP_REGION_TYPE RPN"
    raise user_error("MODEL.CLIP.CROP_REGION_TYPE", " or ".join(SOURCES), repr(clip.CROP_REGION_TYPE), fix)


def rpn_of(source: ProposalSource) -> RPNProposals | None:
    """Return the RPN behind a source, whose modules the detector registers; None if there is none."""
    source = source.rpn if isinstance(source, CachedProposals) else source
    return source if isinstance(source, RPNProposals) else None
