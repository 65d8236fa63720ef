#!/usr/bin/env bash
# Detect 1203 LVIS words on your own pictures with a pretrained RegionCLIP, and draw what was found.
#   bash visualize_zeroshot_inference.sh [rn50x4|rn50] [KEY VALUE ...]
# Pictures are read from INPUT_DIR (./datasets/custom_images), results go to ./output.
set -euo pipefail
cd "$(dirname "$0")"

model=${1:-rn50x4}
shift || true
weights=./pretrained_ckpt
suffix="" size=()
if [ "$model" = rn50x4 ]; then
  suffix=_rn50x4
  size=(MODEL.CLIP.TEXT_EMB_DIM 640 MODEL.RESNETS.DEPTH 200 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 18)
fi

# The proposer comes from the main file, so no BB_RPN_WEIGHTS.
"${PYTHON:-python3}" ./tools/train_net.py --eval-only --num-gpus "${NUM_GPUS:-1}" \
  --config-file ./configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_custom_img.yaml \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/lvis_1203_cls_emb$suffix.pth" \
  MODEL.CLIP.OFFLINE_RPN_CONFIG ./configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml \
  "${size[@]}" "$@"

exec "${PYTHON:-python3}" ./tools/visualize_json_results.py \
  --input ./output/inference/lvis_instances_results.json --output ./output/regions \
  --dataset lvis_v1_val_custom_img --conf-threshold 0.05 --show-unique-boxes --max-boxes 25 --small-region-px 8100
