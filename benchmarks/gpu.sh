#!/usr/bin/env bash
# Run on a GPU what needs one, in at most 8 minutes; results come as one JSON.
#   bash benchmarks/gpu.sh [--dry-run] [--output FOLDER] [--steps NAME ...]
# A machine without a network and with no more than torch is served by benchmarks/gpu_prepare.sh, which fills .gpu
# elsewhere. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export PYTHONPATH=$PWD/benchmarks:$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ -d .gpu/wheels ] && ! "$python" -c "import detectron2, open_clip, faster_coco_eval" 2> /dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
  export PYTHONPATH=$PYTHONPATH:$site
fi
# Operators that were built elsewhere, where they load; else they are built here.
missing='from regionclip.ops import native_problem as p; import torch; raise SystemExit(bool(p("cpu") or torch.cuda.is_available() and p("cuda")))'
if ! "$python" -W ignore -c "$missing"; then
  if [ -d .gpu/operators ]; then cp .gpu/operators/*.so regionclip/ops/; fi
  "$python" -W ignore -c "$missing" || "$python" setup.py -q build_ext --inplace
fi
if [ -d .gpu/goldens ]; then export REGIONCLIP_GOLDENS=$PWD/.gpu/goldens; fi
exec "$python" -m gpu "$@"
