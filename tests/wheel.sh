#!/usr/bin/env bash
# Build the wheel, install it into an environment, and run the commands from another folder: nothing may need the clone.
#   bash tests/wheel.sh PYTHON    of an environment with torch and Detectron2; an editable installation is replaced
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
command=$(dirname "$python")/regionclip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
"$python" -m pip install --quiet --no-deps --force-reinstall "$work"/*.whl
mkdir "$work/images" "$work/annotations"
cp datasets/demo_scenes/*.jpg "$work/images"
cp datasets/demo_scenes/000088.jpg "$work/scene.jpg"
cd "$work"
"$python" -c 'import regionclip; assert "site-packages" in regionclip.__file__, regionclip.__file__'
"$command" detect scene.jpg --words "pizza, dog" --output found
"$command" config MODEL.CLIP.CLSS_TEMP | grep -q temperature
"$command" concepts --vocabulary emoji --output concepts.safetensors
model=$("$python" -c 'from regionclip.files import resolve_path; print(resolve_path("pretrained_ckpt/emoji"))')
detector=(--config-file "$model/config.yaml" MODEL.WEIGHTS "$model/model.safetensors" MODEL.CLIP.TEXT_EMB_PATH concepts.safetensors)
"$command" eval "${detector[@]}" INPUT_DIR images DATASETS.TEST "('lvis_v1_val_custom_img',)" OUTPUT_DIR evaluated
"$command" features "${detector[@]}" INPUT_DIR images OUTPUT_DIR features
"$python" - << 'PROGRAM'
import json
from pathlib import Path
files = sorted(path.name for path in Path("images").iterdir())
content = {
    "images": [{"id": i, "file_name": name} for i, name in enumerate(files)],
    "annotations": [{"id": i, "image_id": i, "caption": f"a scene with number {i}"} for i in range(len(files))],
}
Path("annotations/captions_images.json").write_text(json.dumps(content))
PROGRAM
"$command" train --config-file configs/EmojiOVD/clip.yaml DATASETS.FACTORY_TRAIN "('COCOCaptions',)" \
  DATASETS.PATH_TRAIN "('annotations/captions_images.json',)" SOLVER.IMS_PER_BATCH 6 SOLVER.MAX_ITER 2 \
  SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0 OUTPUT_DIR trained
test -s trained/model_final.pth
echo "Done: the wheel runs without the clone"
