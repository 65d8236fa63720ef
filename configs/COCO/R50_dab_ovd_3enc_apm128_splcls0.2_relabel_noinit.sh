#!/usr/bin/env bash
# Train or evaluate CORA's localizer with CLIP RN50 on open-vocabulary COCO: the published command line.
#   bash configs/COCO/R50_dab_ovd_3enc_apm128_splcls0.2_relabel_noinit.sh NAME GPUS local [--resume FILE] [--eval]
# Further KEY VALUE pairs override the config. Results are in logs/NAME.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/cora_localizer.sh
localize RN50 coco_rn50 region_prompt_R50.pth "$@"
