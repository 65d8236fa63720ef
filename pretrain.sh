#!/usr/bin/env bash
# Pretrain RegionCLIP on image-text pairs.
#   bash pretrain.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50 (default), rn50x4, rn50-small-budget. docs/pretraining.md says which data and weights.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

case=${1:-rn50}
shift || true
case $case in
  rn50) config=RegionCLIP_RN50 suffix="" ;;
  rn50x4) config=RegionCLIP_RN50x4 suffix=_rn50x4 ;;
  rn50-small-budget) config=RegionCLIP_RN50_small_budget suffix="" ;;
  *) fail "unknown case '$case': use rn50, rn50x4 or rn50-small-budget" ;;
esac
model=RN50
if [ -n "$suffix" ]; then model=RN50x4; fi

exec "$python" ./tools/train_net.py --num-gpus "$gpus" --config-file "./configs/pretrain/$config.yaml" \
  MODEL.WEIGHTS "$weights/clip/teacher_${model}_student_${model}_OAI_CLIP.pth" \
  MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml" \
  MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866.pth" \
  MODEL.CLIP.CONCEPT_POOL_EMB "$weights/concept_emb/coco_nouns_4764_emb$suffix.pth" \
  OUTPUT_DIR ./output/pretrain "$@"
