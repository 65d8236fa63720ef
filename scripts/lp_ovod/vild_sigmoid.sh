#!/usr/bin/env bash
# Train the detector of LP-OVOD on the base classes of open-vocabulary COCO: the published command line.
#   bash scripts/lp_ovod/vild_sigmoid.sh [KEY VALUE ...]
# NUM_GPUS (8), LP_OVOD_REGIONS (CLIP's embeddings of proposals) and LP_OVOD_PROPOSALS replace places. The published
# script takes 8 GPUs, does not evaluate, and starts from SoCo. Run again, it resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
NUM_GPUS=${NUM_GPUS:-8}
source tools/lp_ovod.sh
exec "$python" ./tools/train_net.py --resume --num-gpus "$gpus" --config-file configs/lp_ovod/coco_base.yaml \
  MODEL.LP_OVOD.REGIONS "$regions" MODEL.CLIP.CROP_REGION_TYPE "" MODEL.CLIP.OFFLINE_RPN_CONFIG "" \
  DATASETS.TEST "()" OUTPUT_DIR output/lp_ovod/vild_sigmoid "$@"
