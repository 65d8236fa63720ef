#!/usr/bin/env bash
# Train or evaluate CORA's localizer with CLIP RN50x4 on open-vocabulary COCO: the published command line.
#   bash configs/COCO/R50x4_dab_ovd_3enc_apm128_splcls0.2_relabel_noinit.sh NAME GPUS local [--resume FILE] [--eval]
# Further KEY VALUE pairs override the config. Results are in logs/NAME.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/cora_localizer.sh
localize RN50x4 coco_rn50x4 region_prompt_R50x4.pth "$@"
