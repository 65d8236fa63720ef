#!/usr/bin/env bash
# Evaluate LP-OVOD on the 65 classes of open-vocabulary COCO: the published command line.
#   bash scripts/lp_ovod/vild_sigmoid_test.sh CHECKPOINT [KEY VALUE ...]
# The proposals are those of the folder LP_OVOD_PROPOSALS (`regionclip lp-ovod convert`), else of the detector's own RPN.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/lp_ovod.sh
if [ $# -lt 1 ]; then fail "name the checkpoint: vild_sigmoid_test.sh CHECKPOINT"; fi
checkpoint=$1
shift
name_classes output/lp_ovod/coco65.safetensors coco65
own_proposals
exec "$python" ./tools/train_net.py --eval-only --num-gpus "$gpus" --config-file configs/lp_ovod/coco_probe.yaml \
  MODEL.WEIGHTS "$checkpoint" MODEL.CLIP.TEXT_EMB_PATH output/lp_ovod/coco65.safetensors "${boxes[@]}" \
  OUTPUT_DIR output/lp_ovod/vild_sigmoid_test "$@"
