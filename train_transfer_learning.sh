#!/usr/bin/env bash
# Fine-tune a pretrained RegionCLIP on the base classes of COCO or LVIS.
#   bash train_transfer_learning.sh [CASE] [KEY VALUE ...]
# CASE is one of rn50-coco (default), rn50-lvis, rn50x4-coco, rn50x4-lvis.
set -euo pipefail
cd "$(dirname "$0")"

case=${1:-rn50-coco}
shift || true
IFS=- read -r model data classes <<<"$case"
weights=./pretrained_ckpt
coco=./configs/COCO-InstanceSegmentation lvis=./configs/LVISv1-InstanceSegmentation

case $model in
  rn50) suffix="" size=() ;;
  rn50x4)
    suffix=_rn50x4
    size=(MODEL.CLIP.TEXT_EMB_DIM 640 MODEL.RESNETS.DEPTH 200 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 18)
    ;;
  *) echo "error: unknown model '$model' in case '$case': use rn50 or rn50x4" >&2; exit 2 ;;
esac
case $data-$classes in
  coco-) config=$coco/CLIP_fast_rcnn_R_50_C4_ovd.yaml open_set=coco_65 ;;
  lvis-) config=$lvis/CLIP_fast_rcnn_R_50_C4.yaml open_set=lvis_1203 ;;
  *) echo "error: unknown case '$case': the head of this script lists the cases" >&2; exit 2 ;;
esac
if [ "$data" = coco ]; then
  base=coco_48_base
  proposer=(
    MODEL.CLIP.OFFLINE_RPN_CONFIG "$coco/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml"
    MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_coco_48.pth"
  )
else
  base=lvis_866_base
  proposer=(
    MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml"
    MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866_lsj.pth"
    MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED True
  )
  if [ "$model" = rn50x4 ]; then
    size+=(MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 18 MODEL.RESNETS.RES2_OUT_CHANNELS 320)
  fi
fi

exec "${PYTHON:-python3}" ./tools/train_net.py --num-gpus "${NUM_GPUS:-1}" \
  --config-file "$config" \
  MODEL.WEIGHTS "$weights/regionclip/regionclip_pretrained-cc_$model.pth" \
  MODEL.CLIP.TEXT_EMB_PATH "$weights/concept_emb/${base}_cls_emb$suffix.pth" \
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$weights/concept_emb/${open_set}_cls_emb$suffix.pth" \
  "${proposer[@]}" "${size[@]}" "$@"
