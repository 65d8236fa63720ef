#!/usr/bin/env bash
# Linear probing of the 17 novel classes of open-vocabulary COCO: the published command line.
#   bash scripts/lp_ovod/vild_sigmoid_ft.sh CHECKPOINT [KEY VALUE ...]
# The retrieved boxes are datasets/coco/annotations/retrieved_proposals.json (`regionclip lp-ovod retrieve`). Run again,
# it resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/lp_ovod.sh
if [ $# -lt 1 ]; then fail "name the checkpoint of base training: vild_sigmoid_ft.sh CHECKPOINT"; fi
checkpoint=$1
shift
exec "$python" ./tools/train_net.py --resume --num-gpus "$gpus" --config-file configs/lp_ovod/coco_probe.yaml \
  MODEL.WEIGHTS "$checkpoint" MODEL.CLIP.CROP_REGION_TYPE "" MODEL.CLIP.OFFLINE_RPN_CONFIG "" \
  DATASETS.TEST "()" OUTPUT_DIR output/lp_ovod/vild_sigmoid_ft "$@"
