#!/usr/bin/env bash
# Detect 1203 LVIS words on your own images with a pretrained RegionCLIP, and draw the detections.
#   bash visualize_zeroshot_inference.sh [rn50x4|rn50] [KEY VALUE ...]
# Images are read from ./datasets/custom_images, results go to ./output.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

model=${1:-rn50x4}
shift || true
choose_model "$model"

# The RPN comes from the main file, so no BB_RPN_WEIGHTS.
detect_custom_images \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/lvis_1203_cls_emb$suffix.pth" \
  "${size[@]}" "$@"
