#!/usr/bin/env bash
# Run all checks that need a GPU, in at most 8 minutes; the results are one JSON file.
#   bash benchmarks/gpu.sh [--dry-run] [--output FOLDER] [--steps NAME ...]
# For a machine without a network and with torch only, run benchmarks/gpu_prepare.sh elsewhere first; it fills .gpu.
# PYTHON selects another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export PYTHONPATH=$PWD/benchmarks:$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ -d .gpu/wheels ] && ! "$python" -c "import detectron2, open_clip, faster_coco_eval" 2> /dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
  export PYTHONPATH=$PYTHONPATH:$site
fi
# Use the operators that were built elsewhere if they load; otherwise build them here.
missing='from regionclip.ops import native_problem as p; import torch; raise SystemExit(bool(p("cpu") or torch.cuda.is_available() and p("cuda")))'
if ! "$python" -W ignore -c "$missing"; then
  if [ -d .gpu/operators ]; then cp .gpu/operators/*.so regionclip/ops/; fi
  "$python" -W ignore -c "$missing" || "$python" setup.py -q build_ext --inplace
fi
if [ -d .gpu/goldens ]; then export REGIONCLIP_GOLDENS=$PWD/.gpu/goldens; fi
exec "$python" -m gpu "$@"
