#!/usr/bin/env bash
# Save region embeddings of the images in datasets/custom_images, a file for each in output/region_feats.
#   bash extract_region_features.sh [CASE] [KEY VALUE ...]
# CASE is rn50 (default) or rn50x4 for detections of LVIS's words, rn50-proposals for 100 proposals an image.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

case=${1:-rn50}
shift || true
model=${case%-proposals}
choose_model "$model"
regions=(MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/lvis_1203_cls_emb$suffix.pth" TEST.DETECTIONS_PER_IMAGE 100)
if [ "$case" != "$model" ]; then regions=(MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST 100); fi

exec "$python" ./tools/extract_region_features.py --num-gpus "$gpus" \
  --config-file "$lvis/CLIP_fast_rcnn_R_50_C4_zsinf.yaml" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.CROP_REGION_TYPE RPN MODEL.CLIP.MULTIPLY_RPN_SCORE True \
  MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml" \
  MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866.pth" \
  INPUT_DIR ./datasets/custom_images OUTPUT_DIR ./output/region_feats "${regions[@]}" "${size[@]}" "$@"
