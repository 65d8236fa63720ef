#!/usr/bin/env bash
# RALF on the synthetic dataset of emoji scenes: negative words, fine-tuning with and without the losses against them
# (RAL), the concept augmenter on region embeddings, and evaluations with its features (RAF). Run tools/train_emoji.sh
# first, for the pretrained detector.
#   bash tools/train_emoji_ralf.sh [KEY VALUE ...]
# EMOJI_SEEDS ("1 2 3") are the seeds of fine-tuning and of the augmenter, EMOJI_RAL_WEIGHTS ("1 0.1") weights of both
# losses, EMOJI_RAF ("log_add:1 log_add:10 scale:20 prob_add:1") fusions and numbers of classes. Overrides apply to every
# training. Run again, the script resumes; finished stages are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

student=${EMOJI_STUDENT:-pretrain}
if [ ! -f "$out/$student/model_final.pth" ]; then fail "no detector in $out/$student: run tools/train_emoji.sh first"; fi
encoder=(--weights "$teacher" --architecture "$configs/emoji_clip.json")
store=$out/ralf_store.safetensors
concepts=$out/ralf_concepts.safetensors
regions=$out/ralf_regions

# fine_tune STAGE SEED KEY VALUE ...: training on boxes of base concepts, from the pretrained detector
fine_tune() {
  local stage=$1 seed=$2
  shift 2
  transfer "$stage" "$student" SEED "$seed" "$@"
}

embed emoji concepts
embed emoji880 base_concepts
if [ ! -f "$store" ]; then
  "$python" -m regionclip ralf build-store --classes emoji --words default --output "$store" "${encoder[@]}"
fi
for seed in ${EMOJI_SEEDS:-1 2 3}; do
  fine_tune "ralf_without_seed$seed" "$seed" "$@"
  for weight in ${EMOJI_RAL_WEIGHTS:-1 0.1}; do
    fine_tune "ralf_ral${weight}_seed$seed" "$seed" MODEL.RALF.RAL.ENABLED True MODEL.RALF.RAL.STORE "$store" \
      MODEL.RALF.RAL.CLASSES emoji880 MODEL.RALF.RAL.WEIGHT_HARD "$weight" MODEL.RALF.RAL.WEIGHT_EASY "$weight" "$@"
  done
done
if [ ! -f "$concepts" ]; then
  "$python" -m regionclip ralf build-concepts --words default --output "$concepts" "${encoder[@]}"
fi
if [ ! -f "$regions/index.json" ]; then
  "$python" tools/extract_region_features.py --num-gpus "$gpus" --config-file "$configs/detector.yaml" \
    --format safetensors --half --objectness INPUT_DIR "$world/train" OUTPUT_DIR "$regions" \
    MODEL.WEIGHTS "$out/$student/model_final.pth" MODEL.CLIP.TEXT_EMB_PATH "" DATASETS.TEST "()" "${boxes[@]}"
fi
for seed in ${EMOJI_SEEDS:-1 2 3}; do
  augmenter=$out/ralf_augmenter_seed$seed
  if [ ! -f "$augmenter/augmenter.pth" ]; then
    "$python" -m regionclip ralf train-augmenter --regions "$regions" --concepts "$concepts" \
      --classes "$out/base_concepts.safetensors" --output "$augmenter" --seed "$seed"
  fi
  for choice in ${EMOJI_RAF:-log_add:1 log_add:10 scale:20 prob_add:1}; do
    evaluate "ralf_raf_${choice/:/_}_seed$seed" "$student" MODEL.RALF.RAF.ENABLED True \
      MODEL.RALF.RAF.EMBEDDING regions MODEL.RALF.RAF.CONCEPTS "$concepts" \
      MODEL.RALF.RAF.WEIGHTS "$augmenter/augmenter.pth" MODEL.RALF.RAF.FUSION "${choice%:*}" \
      MODEL.RALF.RAF.TOPK "${choice#*:}"
  done
done
evaluate "zero_shot_rpn_$student" "$student"
echo "Done: metrics in $out/{zero_shot_rpn_$student,ralf_*}/inference/metrics.json"
