#!/usr/bin/env bash
# Detect 1203 LVIS words on your own images with a fine-tuned detector, and draw the detections.
#   bash visualize_transfer_learning.sh [rn50x4|rn50] [KEY VALUE ...]
# Images are read from ./datasets/custom_images, results go to ./output.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

model=${1:-rn50x4}
shift || true
choose_model "$model"
add_mask_size "$model"
words="$weights/concept_emb/lvis_1203_cls_emb$suffix.pth"

detect_custom_images \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_finetuned-lvis_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$words" MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$words" \
  MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866_lsj.pth" \
  MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED True \
  "${size[@]}" "$@"
