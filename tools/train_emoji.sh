#!/usr/bin/env bash
# Train the whole recipe on the small world of emoji scenes: CLIP, proposer, concepts, region-text pretraining,
# zero-shot evaluation, transfer.
#   bash tools/train_emoji.sh [KEY VALUE ...]
# Overrides go to every training. Given again, it goes on where it stopped; stages that are done are left out.
# EMOJI_OUTPUT names another folder than output/emoji, EMOJI_SCENES another number of scenes of each split,
# EMOJI_PACKAGES a folder with the packages of drawings.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/published_cases.sh

configs=configs/EmojiOVD
out=${EMOJI_OUTPUT:-output/emoji}
world=${DETECTRON2_DATASETS:-datasets}/emoji
scenes=${EMOJI_SCENES:+--scenes $EMOJI_SCENES}
packages=${EMOJI_PACKAGES:+--packages $EMOJI_PACKAGES}
words=(MODEL.CLIP.TEXT_EMB_PATH "$out/concepts.safetensors")
boxes=(MODEL.CLIP.BB_RPN_WEIGHTS "$out/rpn/model_final.pth")

# train STAGE CONFIG KEY VALUE ...
train() {
  local stage=$1 config=$2
  shift 2
  if [ -f "$out/$stage/model_final.pth" ]; then return; fi
  "$python" tools/train_net.py --resume --num-gpus "$gpus" --config-file "$configs/$config.yaml" \
    OUTPUT_DIR "$out/$stage" "$@"
}

# evaluate NAME WEIGHTS KEY VALUE ...: zero-shot, with all words
evaluate() {
  local name=$1 weights=$2
  shift 2
  if [ -f "$out/$name/inference/metrics.json" ]; then return; fi
  "$python" tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$configs/detector.yaml" \
    MODEL.WEIGHTS "$weights" OUTPUT_DIR "$out/$name" "${words[@]}" "${boxes[@]}" "$@"
}

# embed LIST FILE
embed() {
  if [ -f "$out/$2.safetensors" ]; then return; fi
  "$python" -m regionclip concepts --vocabulary "$1" --output "$out/$2.safetensors" \
    --weights "$out/clip/model_final.pth" --architecture "$configs/emoji_clip.json"
}

if [ ! -f "$world/annotations/captions_style.json" ]; then
  # shellcheck disable=SC2086 - the options are empty or two words
  "$python" tools/prepare_emoji.py --root "$world" $scenes $packages
fi
train clip clip DATASETS.PATH_TRAIN "('$world',)" "$@"
embed emoji concepts
embed emoji880 base_concepts
train rpn rpn MODEL.WEIGHTS "$out/clip/model_final.pth" "$@"
train pretrain pretrain MODEL.WEIGHTS "$out/clip/model_final.pth" MODEL.CLIP.TEACHER_WEIGHTS "$out/clip/model_final.pth" \
  MODEL.CLIP.CONCEPT_POOL_EMB "$out/concepts.safetensors" "${boxes[@]}" \
  DATASETS.PATH_TRAIN "('$world/annotations/captions_train.json',)" "$@"
gt=(MODEL.CLIP.CROP_REGION_TYPE GT MODEL.CLIP.MULTIPLY_RPN_SCORE False)
for stage in clip pretrain; do
  evaluate "zero_shot_gt_$stage" "$out/$stage/model_final.pth" "${gt[@]}"
  evaluate "zero_shot_rpn_$stage" "$out/$stage/model_final.pth"
done
evaluate zero_shot_style "$out/pretrain/model_final.pth" DATASETS.TEST "('emoji_style',)"
for stage in clip pretrain; do
  train "transfer_$stage" transfer MODEL.WEIGHTS "$out/$stage/model_final.pth" "${boxes[@]}" \
    MODEL.CLIP.TEXT_EMB_PATH "$out/base_concepts.safetensors" \
    MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$out/concepts.safetensors" "$@"
done
echo "Done: figures in $out/*/inference/metrics.json"
