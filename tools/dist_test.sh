#!/usr/bin/env bash
# Evaluate DetPro, with RALF's features or without: the published command line.
#   bash tools/dist_test.sh configs/ralf/raf.py CHECKPOINT GPUS [--eval segm] [--cfg-options ...] [KEY VALUE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/ralf.sh
if [ $# -lt 3 ]; then fail "name config, checkpoint and number of GPUs: dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS]"; fi
choose_config "$1"
checkpoint=$2 number=$3
# The last checkpoint of the published training is that of an epoch; of ours model_final.pth.
final=$(dirname "$checkpoint")/model_final.pth
if [ ! -f "$checkpoint" ] && [ -f "$final" ]; then checkpoint=$final; fi
shift 3
read_options "$@"
exec "$python" ./tools/train_net.py --eval-only --num-gpus "$number" --config-file "$config" \
  MODEL.WEIGHTS "$checkpoint" "${options[@]}"
