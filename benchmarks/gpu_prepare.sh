#!/usr/bin/env bash
# Fill .gpu with the files that benchmarks/gpu.sh needs on a machine with Python 3.12, torch and common packages, but no
# network: wheels of other packages, the native operators built here, and emoji scenes; at most 64 MiB with the tree.
#   bash benchmarks/gpu_prepare.sh [--scenes 200]
# PYTHON selects an interpreter with this package installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
scenes=200
if [ "${1:-}" = --scenes ]; then scenes=$2; fi
limit=$((64 << 20))

# Packages with wheels that are usually not installed with torch; one package without a wheel is built from source.
wheels=(fvcore iopath yacs omegaconf==2.3.0 hydra-core==1.3.2 termcolor open_clip_torch ftfy wcwidth pycocotools
  faster-coco-eval lvis==0.5.3 portalocker)
pip=("$python" -m pip --disable-pip-version-check --quiet)
target=(--no-deps --dest .gpu/wheels)

rm -rf .gpu/wheels .gpu/operators
mkdir -p .gpu/wheels .gpu/operators
for package in "${wheels[@]}"; do
  platforms=()
  for version in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${version}_x86_64")
  done
  "${pip[@]}" download "${target[@]}" --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    "$package" || "${pip[@]}" wheel --no-deps --wheel-dir .gpu/wheels "$package"
done
"${pip[@]}" wheel --no-deps --wheel-dir .gpu/wheels antlr4-python3-runtime==4.9.3
# Detectron2 without its compiled extension, which is not needed and is for another Python version.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
detectron2=$(grep -o 'sal-detectron2==[0-9.]*' tools/install.py)
"${pip[@]}" download --no-deps --only-binary=:all: --python-version 3.10 --dest "$work" "$detectron2"
"$python" -m wheel unpack --dest "$work" "$work"/*.whl > /dev/null
find "$work" -name "_C*.so" -delete
"$python" -m wheel pack --dest-dir .gpu/wheels "$work"/sal_detectron2-*/ > /dev/null
"$python" -m wheel tags --python-tag py3 --abi-tag none --platform-tag any --remove .gpu/wheels/sal_detectron2-*.whl > /dev/null
cp regionclip/ops/_native*.so .gpu/operators/
git rev-parse HEAD > .gpu/commit
# The photos of the goldens that must not be redistributed, if they are available.
if [ -f "${REGIONCLIP_GOLDENS:-}/inputs.npz" ]; then
  mkdir -p .gpu/goldens
  cp "$REGIONCLIP_GOLDENS/inputs.npz" .gpu/goldens/
fi
"$python" tools/prepare_emoji.py --root .gpu/datasets/emoji --splits val --scenes "$scenes"
rm -rf .gpu/datasets/emoji/drawings

bytes=$(($(du -sb .gpu | cut -f1) + $(git ls-files -z | xargs -0 cat | wc -c)))
if [ "$bytes" -gt "$limit" ]; then
  echo "error: .gpu with the tree: expected at most $limit bytes, got $bytes. Fix: fewer --scenes" >&2
  exit 2
fi
echo "Done: .gpu, $((bytes >> 20)) MiB with the tree"
