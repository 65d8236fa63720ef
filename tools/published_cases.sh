# Shared functions of the published scripts; each script sources this file from the repository root.

weights=./pretrained_ckpt
coco=./configs/COCO-InstanceSegmentation
lvis=./configs/LVISv1-InstanceSegmentation
python=${PYTHON:-python3}
gpus=${NUM_GPUS:-1}

fail() {
  echo "error: $1" >&2
  exit 2
}

# choose_model rn50|rn50x4: sets `suffix` of the embedding files and the overrides `size`.
choose_model() {
  suffix="" size=()
  case $1 in
    rn50) ;;
    rn50x4)
      suffix=_rn50x4
      size=(MODEL.CLIP.TEXT_EMB_DIM 640 MODEL.RESNETS.DEPTH 200 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 18)
      ;;
    *) fail "unknown model '$1': use rn50 or rn50x4" ;;
  esac
}

# add_mask_size rn50|rn50x4: adds the overrides of detectors with masks to `size`.
add_mask_size() {
  if [ "$1" = rn50x4 ]; then
    size+=(MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 18 MODEL.RESNETS.RES2_OUT_CHANNELS 320)
  fi
}

# choose_transfer MODEL coco|lvis: sets the embeddings of the `base` classes and the overrides `rpn`.
choose_transfer() {
  choose_model "$1"
  case $2 in
    coco)
      base=coco_48_base
      rpn=(
        MODEL.CLIP.OFFLINE_RPN_CONFIG "$coco/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml"
        MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_coco_48.pth"
      )
      ;;
    lvis)
      base=lvis_866_base
      rpn=(
        MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml"
        MODEL.CLIP.BB_RPN_WEIGHTS "$weights/rpn/rpn_lvis_866_lsj.pth"
        MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED True
      )
      add_mask_size "$1"
      ;;
    *) fail "unknown data '$2': use coco or lvis" ;;
  esac
}

# override KEY DEFAULT ARGUMENTS...: prints the last value of KEY among options and overrides.
override() {
  local key=$1 value=$2
  shift 2
  while [ $# -gt 1 ]; do
    if [ "$1" = "$key" ]; then value=$2; fi
    shift
  done
  echo "$value"
}

# detect_custom_images OVERRIDES...: detects on INPUT_DIR and draws the detections.
detect_custom_images() {
  local output input status=0 drawn=0
  output=$(override OUTPUT_DIR ./output "$@")
  input=$(override INPUT_DIR ./datasets/custom_images "$@")
  "$python" ./tools/train_net.py --eval-only --num-gpus "$gpus" \
    --config-file "$lvis/CLIP_fast_rcnn_R_50_C4_custom_img.yaml" \
    MODEL.CLIP.OFFLINE_RPN_CONFIG "$lvis/mask_rcnn_R_50_FPN_1x.yaml" "$@" || status=$?
  # Exit code 1 means that some images could not be read; the detections of the others are drawn.
  if [ "$status" -gt 1 ]; then exit "$status"; fi
  "$python" ./tools/visualize_json_results.py --input-dir "$input" \
    --input "$output/inference/lvis_instances_results.json" --output "$output/regions" \
    --dataset lvis_v1_val_custom_img --conf-threshold 0.05 --show-unique-boxes --max-boxes 25 --small-region-px 8100 \
    || drawn=$?
  exit $((drawn > status ? drawn : status))
}
