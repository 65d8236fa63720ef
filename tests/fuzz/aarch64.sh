#!/usr/bin/env bash
# Compile the operators' loops for aarch64 (NEON) and run the fuzz targets on random bytes under emulation.
#   bash tests/fuzz/aarch64.sh [INPUTS for each target, default 2000]
# Needs clang (its header), a cross compiler and qemu (Debian and Ubuntu: apt install clang g++-aarch64-linux-gnu
# qemu-user-static).
set -euo pipefail
cd "$(dirname "$0")/../.."

inputs=${1:-2000}
for tool in clang++ aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$tool" > /dev/null || { echo "error: no $tool. Fix: see the head of $0" >&2; exit 2; }
done
folder=build/fuzz/aarch64
mkdir -p "$folder/include"
ln -sfn "$(clang++ -print-resource-dir)/include/fuzzer" "$folder/include/fuzzer"
sources=regionclip/ops/csrc/cpu
for target in roi_align nms soft_nms; do
  aarch64-linux-gnu-g++ -std=c++17 -O3 -static -I "$folder/include" tests/fuzz/replay.cpp "tests/fuzz/$target.cpp" \
    $sources/{roi_align_loops,box_list,instruction_set}.cpp -o "$folder/$target"
  echo "$target, NEON: $(qemu-aarch64-static "$folder/$target" "$inputs")"
done
aarch64-linux-gnu-g++ -std=c++17 -O3 -c $sources/winograd_loops.cpp -o "$folder/winograd_loops.o"
vectors=$(aarch64-linux-gnu-objdump -d "$folder/winograd_loops.o" | grep -cE 'fm(ul|la)\s+v[0-9]+\.4s')
echo "winograd, NEON: compiled, $vectors vector multiplications"
