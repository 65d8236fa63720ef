#!/usr/bin/env bash
# Zero-shot inference of a pretrained RegionCLIP, without any training on detection data.
#   bash test_zeroshot_inference.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50-gt-coco (default), rn50-rpn-coco, rn50-gt-lvis, rn50-rpn-lvis, and the same with rn50x4.
set -euo pipefail
cd "$(dirname "$0")"

case=${1:-rn50-gt-coco}
shift || true
IFS=- read -r model boxes data <<<"$case"
weights=./pretrained_ckpt

case $model in
  rn50) suffix="" size=() ;;
  rn50x4)
    suffix=_rn50x4
    size=(MODEL.CLIP.TEXT_EMB_DIM 640 MODEL.RESNETS.DEPTH 200 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 18)
    ;;
  *) echo "error: unknown model '$model' in case '$case': use rn50 or rn50x4" >&2; exit 2 ;;
esac
case $data in
  coco) config=COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml embeddings=coco_65 extra=() ;;
  lvis) config=LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_zsinf.yaml embeddings=lvis_1203 extra=() ;;
  *) echo "error: unknown data '$data' in case '$case': use coco or lvis" >&2; exit 2 ;;
esac
case $boxes in
  gt)
    regions=(MODEL.CLIP.CROP_REGION_TYPE GT MODEL.CLIP.MULTIPLY_RPN_SCORE False)
    if [ "$data" = lvis ]; then extra=(MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0001); fi
    ;;
  rpn)
    regions=(
      MODEL.CLIP.CROP_REGION_TYPE RPN
      MODEL.CLIP.MULTIPLY_RPN_SCORE True
      MODEL.CLIP.OFFLINE_RPN_CONFIG ./configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml
      MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866.pth"
    )
    ;;
  *) echo "error: unknown boxes '$boxes' in case '$case': use gt or rpn" >&2; exit 2 ;;
esac

exec "${PYTHON:-python3}" ./tools/train_net.py --eval-only --num-gpus "${NUM_GPUS:-1}" \
  --config-file "./configs/$config" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/${embeddings}_cls_emb$suffix.pth" \
  "${regions[@]}" "${extra[@]}" "${size[@]}" "$@"
