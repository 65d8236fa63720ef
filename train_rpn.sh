#!/usr/bin/env bash
# Train the region proposal network that proposes boxes to the CLIP detectors.
#   bash train_rpn.sh [CASE] [KEY VALUE ...]
# CASE is one of coco48 (default: the 48 base classes), coco65, coco80, lvis866, lvis866-lsj.
# The result, output/rpn/CASE/model_final.pth, is for MODEL.CLIP.BB_RPN_WEIGHTS.
set -euo pipefail
cd "$(dirname "$0")"
source tools/published_cases.sh

case=${1:-coco48}
shift || true
overrides=()
case $case in
  coco48) config=$coco/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml overrides=(DATASETS.TEST "('coco_2017_ovd_b_test',)") ;;
  coco65) config=$coco/mask_rcnn_R_50_C4_1x_ovd_coco65.yaml ;;
  coco80) config=$coco/mask_rcnn_R_50_C4_1x.yaml ;;
  lvis866)
    # The labels of lvis_v1_val count 1203 classes, those of training 866.
    config=$lvis/mask_rcnn_R_50_FPN_1x.yaml overrides=(MODEL.ROI_HEADS.NUM_CLASSES 866 DATASETS.TEST "()")
    ;;
  lvis866-lsj) config=$lvis/mask_rcnn_R_50_FPN_LSJ.yaml ;;
  *) fail "unknown case '$case': use coco48, coco65, coco80, lvis866 or lvis866-lsj" ;;
esac

exec "$python" ./tools/train_net.py --num-gpus "$gpus" --config-file "$config" \
  OUTPUT_DIR "./output/rpn/$case" "${overrides[@]}" "$@"
