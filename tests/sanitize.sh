#!/usr/bin/env bash
# Run the tests of the operators on a build with address and undefined-behavior sanitizers, for each instruction set of
# the processor.
#   bash tests/sanitize.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "${1:-python3}")
copy=build/sanitize
mkdir -p "$copy"
# A copy of the tree, so that the build of the installation is kept.
for part in regionclip tests configs setup.py pyproject.toml README.md; do
  rm -rf "${copy:?}/$part"
  cp -r "$part" "$copy/"
done
cd "$copy"
rm -f regionclip/ops/*.so
REGIONCLIP_SANITIZE=1 FORCE_CUDA=0 "$python" setup.py -q build_ext --inplace
[ -f regionclip/ops/_native.abi3.so ] || { echo "error: the build with sanitizers failed" >&2; exit 1; }

# The sanitizer must be loaded before Python; Python and torch do not free all memory at exit.
sanitized() {
  LD_PRELOAD="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 "$python" "$@"
}

known='from regionclip.ops.native import INSTRUCTION_SETS as s, instruction_set as i; print(*s[: s.index(i()) + 1])'
for instruction_set in $(sanitized -W ignore -c "$known"); do
  echo "$instruction_set:"
  REGIONCLIP_ISA=$instruction_set sanitized -m pytest -q -p no:cacheprovider tests/ops/test_ops.py tests/ops/test_winograd.py
done
