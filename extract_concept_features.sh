#!/usr/bin/env bash
# Embed the concepts of datasets/custom_concepts/concepts.txt, one on each line.
#   bash extract_concept_features.sh [CASE] [KEY VALUE ...]
# CASE is rn50 (default) or rn50x4. The result is output/concept_feats/concept_embeds.pth.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

model=${1:-rn50}
shift || true
choose_model "$model"

exec "$python" ./tools/extract_concept_features.py --config-file "$lvis/CLIP_fast_rcnn_R_50_C4_zsinf.yaml" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml" \
  MODEL.CLIP.GET_CONCEPT_EMB True \
  INPUT_DIR ./datasets/custom_concepts OUTPUT_DIR ./output/concept_feats "${size[@]}" "$@"
