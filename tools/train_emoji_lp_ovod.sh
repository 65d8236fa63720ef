#!/usr/bin/env bash
# LP-OVOD on the synthetic dataset of emoji scenes: OLN on base boxes, CLIP's embeddings of its proposals, the detector
# on base boxes, retrieval for novel names, linear probing, and evaluations before and after it. Run tools/train_emoji.sh
# first, for CLIP.
#   bash tools/train_emoji_lp_ovod.sh [KEY VALUE ...]
# Overrides apply to every training. Run again, the script resumes; finished stages are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

if [ ! -f "$teacher" ]; then fail "no CLIP in $teacher: run tools/train_emoji.sh first"; fi
per_word=${EMOJI_PER_WORD:-50}
regions=$out/lp_ovod_regions
retrieved=$world/annotations/train_retrieved.json
boxes=(MODEL.CLIP.BB_RPN_WEIGHTS "$out/oln/model_final.pth")

# evaluate_lp_ovod NAME CONFIG WEIGHTS KEY VALUE ...: evaluates unless it is done
evaluate_lp_ovod() {
  local name=$1 config=$2 weights=$3
  shift 3
  if [ -f "$out/$name/inference/metrics.json" ]; then return; fi
  "$python" tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$configs/$config.yaml" \
    MODEL.WEIGHTS "$weights" OUTPUT_DIR "$out/$name" "$@"
}

embed emoji concepts
embed emoji880 base_concepts
embed emoji294 novel_concepts
train oln oln MODEL.WEIGHTS "$teacher" "$@"
evaluate_lp_ovod oln_proposals oln "$out/oln/model_final.pth"
evaluate_lp_ovod crop_clip crop_clip "$teacher" "${boxes[@]}" "${words[@]}"
if [ ! -f "$regions/index.json" ]; then
  "$python" tools/extract_region_features.py --num-gpus "$gpus" --config-file "$configs/crop_clip.yaml" \
    --format safetensors --half --objectness INPUT_DIR "$world/train" OUTPUT_DIR "$regions" \
    MODEL.WEIGHTS "$teacher" "${boxes[@]}"
fi
train lp_ovod_base lp_ovod_base MODEL.WEIGHTS "$teacher" "${boxes[@]}" MODEL.LP_OVOD.REGIONS "$regions" \
  MODEL.CLIP.TEXT_EMB_PATH "$out/base_concepts.safetensors" \
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$out/concepts.safetensors" "$@"
base=$out/lp_ovod_base/model_final.pth
if [ ! -f "$retrieved" ]; then
  "$python" -m regionclip lp-ovod retrieve --regions "$regions" --embeddings "$out/novel_concepts.safetensors" \
    --annotations "$world/annotations/train.json" --output "$retrieved" --per-word "$per_word"
fi
train lp_ovod lp_ovod_probe MODEL.WEIGHTS "$base" "${boxes[@]}" "${words[@]}" "$@"
evaluate_lp_ovod lp_ovod_before lp_ovod_base "$base" "${boxes[@]}" \
  MODEL.CLIP.TEXT_EMB_PATH "$out/base_concepts.safetensors" \
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$out/concepts.safetensors"
evaluate_lp_ovod lp_ovod_after lp_ovod_probe "$out/lp_ovod/model_final.pth" "${boxes[@]}" "${words[@]}"
"$python" benchmarks/retrieval_precision.py --retrieved "$retrieved" --truth "$world/annotations/train.json" \
  --output "$out/lp_ovod/retrieval.json"
echo "Done: metrics in $out/{oln_proposals,crop_clip,lp_ovod_before,lp_ovod_after}/inference/metrics.json"
