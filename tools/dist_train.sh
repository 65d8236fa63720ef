#!/usr/bin/env bash
# Train DetPro with RALF's losses: the published command line.
#   bash tools/dist_train.sh configs/ralf/ral.py GPUS [--work-dir DIR] [--cfg-options model.roi_head.prompt_path=FILE]
#     [KEY VALUE ...]
# RALF_REGIONS is the folder of CLIP's embeddings of proposals (docs/methods/ralf.md). Run again, it resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/ralf.sh
if [ $# -lt 2 ]; then fail "name config and number of GPUs: dist_train.sh CONFIG GPUS [OPTIONS]"; fi
choose_config "$1"
number=$2
shift 2
read_options "$@"
exec "$python" ./tools/train_net.py --resume --num-gpus "$number" --config-file "$config" \
  MODEL.RALF.REGIONS "$regions" "${options[@]}"
