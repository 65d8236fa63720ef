#!/usr/bin/env bash
# Fuzz the operators with libFuzzer under address and undefined-behavior sanitizers, with each instruction set that the
# processor has.
#   bash tests/fuzz/run.sh [SECONDS of CPU for each target and instruction set, default 600] [TARGET ...]
# Needs clang++ (Debian and Ubuntu: apt install clang; CLANG names another). Findings go to build/fuzz.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(roi_align nms soft_nms)
clang=${CLANG:-$(command -v clang++ || compgen -c clang++- | sort -V | tail -1 || true)}
[ -n "$clang" ] || { echo "error: no clang++. Fix: apt install clang, or CLANG=..." >&2; exit 2; }

instruction_sets=(baseline)
for flag in avx2 avx512vl; do
  if grep -qw "$flag" /proc/cpuinfo; then instruction_sets+=("${flag%vl}"); fi
done

mkdir -p build/fuzz
for target in "${targets[@]}"; do
  corpus=build/fuzz/corpus_$target
  mkdir -p "$corpus"
  "$clang" -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    "tests/fuzz/$target.cpp" regionclip/ops/csrc/cpu/{roi_align_loops,box_list,instruction_set}.cpp -o "build/fuzz/$target"
  for instruction_set in "${instruction_sets[@]}"; do
    echo "$target, $instruction_set: $seconds s"
    log=build/fuzz/$target-$instruction_set.log
    REGIONCLIP_ISA=$instruction_set "build/fuzz/$target" -max_total_time="$seconds" -max_len=4096 \
      -artifact_prefix="build/fuzz/$target-" -print_final_stats=1 "$corpus" 2> "$log" \
      || { tail -40 "$log"; echo "error: $target has a finding in build/fuzz" >&2; exit 1; }
    grep -E "^#[0-9]+ +DONE|stat::number_of_executed_units" "$log"
  done
done
