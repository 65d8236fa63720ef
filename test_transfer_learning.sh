#!/usr/bin/env bash
# Evaluate a detector that was fine-tuned on base classes, on base and novel classes.
#   bash test_transfer_learning.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50-coco (default: base and novel together), rn50-coco-novel, rn50-coco-base, rn50-lvis,
# and the same with rn50x4.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

IFS=- read -r model data classes <<<"${1:-rn50-coco}"
shift || true
choose_transfer "$model" "$data"

case $data-$classes in
  coco-) config=$coco/CLIP_fast_rcnn_R_50_C4_ovd.yaml open_set=coco_65 ;;
  coco-novel) config=$coco/CLIP_fast_rcnn_R_50_C4_ovd_testt.yaml open_set=coco_17_target ;;
  coco-base) config=$coco/CLIP_fast_rcnn_R_50_C4_ovd_testb.yaml open_set=coco_48_base ;;
  lvis-) config=$lvis/CLIP_fast_rcnn_R_50_C4.yaml open_set=lvis_1203 ;;
  *) fail "unknown classes '$classes' for $data: the head of this script lists the cases" ;;
esac

exec "$python" ./tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$config" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_finetuned-${data}_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/${base}_cls_emb$suffix.pth" \
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$weights/concept_emb/${open_set}_cls_emb$suffix.pth" \
  MODEL.ROI_HEADS.SOFT_NMS_ENABLED True \
  "${rpn[@]}" "${size[@]}" "$@"
