#!/usr/bin/env bash
# Zero-shot inference of a pretrained RegionCLIP, without any training on detection data.
#   bash test_zeroshot_inference.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50-gt-coco (default), rn50-rpn-coco, rn50-gt-lvis, rn50-rpn-lvis, and the same with rn50x4.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

IFS=- read -r model boxes data <<<"${1:-rn50-gt-coco}"
shift || true
choose_model "$model"

case $data in
  coco) config=$coco/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml embeddings=coco_65 threshold=() ;;
  lvis) config=$lvis/CLIP_fast_rcnn_R_50_C4_zsinf.yaml embeddings=lvis_1203 threshold=(MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0001) ;;
  *) fail "unknown data '$data': use coco or lvis" ;;
esac
case $boxes in
  gt) regions=(MODEL.CLIP.CROP_REGION_TYPE GT MODEL.CLIP.MULTIPLY_RPN_SCORE False "${threshold[@]}") ;;
  rpn)
    regions=(
      MODEL.CLIP.CROP_REGION_TYPE RPN
      MODEL.CLIP.MULTIPLY_RPN_SCORE True
      MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml"
      MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866.pth"
    )
    ;;
  *) fail "unknown boxes '$boxes': use gt or rpn" ;;
esac

exec "$python" ./tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$config" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/${embeddings}_cls_emb$suffix.pth" \
  "${regions[@]}" "${size[@]}" "$@"
