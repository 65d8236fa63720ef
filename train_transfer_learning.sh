#!/usr/bin/env bash
# Fine-tune a pretrained RegionCLIP on the base classes of COCO or LVIS.
#   bash train_transfer_learning.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50-coco (default), rn50-lvis, rn50x4-coco, rn50x4-lvis.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

IFS=- read -r model data <<<"${1:-rn50-coco}"
shift || true
choose_transfer "$model" "$data"

if [ "$data" = coco ]; then
  config=$coco/CLIP_fast_rcnn_R_50_C4_ovd.yaml open_set=coco_65
else
  config=$lvis/CLIP_fast_rcnn_R_50_C4.yaml open_set=lvis_1203
fi

exec "$python" ./tools/train_net.py --num-gpus "$gpus" --config-file "$config" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/${base}_cls_emb$suffix.pth" \
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$weights/concept_emb/${open_set}_cls_emb$suffix.pth" \
  "${rpn[@]}" "${size[@]}" "$@"
