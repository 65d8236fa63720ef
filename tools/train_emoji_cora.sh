#!/usr/bin/env bash
# CORA on the synthetic dataset of emoji scenes: region prompting, CLIP-aligned labels, the localizer on base boxes, and
# the evaluation on base and novel concepts. Run tools/train_emoji.sh first, for CLIP and class embeddings.
#   bash tools/train_emoji_cora.sh [KEY VALUE ...]
# Overrides apply to every training. Run again, the script resumes; finished stages are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

if [ ! -f "$teacher" ]; then fail "no CLIP in $teacher: run tools/train_emoji.sh first"; fi
named=(MODEL.CLIP.TEXT_EMB_PATH "$out/base_concepts.safetensors"
  MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$out/concepts.safetensors")
prompt=$out/cora_prompt/prompt.pth
labels=$world/annotations/train_relabel.json

# evaluate_cora NAME CONFIG WEIGHTS KEY VALUE ...: evaluates unless it is done
evaluate_cora() {
  local name=$1 config=$2 weights=$3
  shift 3
  if [ -f "$out/$name/inference/metrics.json" ]; then return; fi
  "$python" tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$configs/$config.yaml" \
    MODEL.WEIGHTS "$weights" OUTPUT_DIR "$out/$name" "${named[@]}" "$@"
}

train cora_prompt cora_prompt MODEL.WEIGHTS "$teacher" "${named[@]}" "$@"
evaluate_cora cora_gt_clip cora_prompt "$teacher"
evaluate_cora cora_gt_prompt cora_prompt "$out/cora_prompt/model_final.pth"
if [ ! -f "$prompt" ]; then
  "$python" -m regionclip cora prompt "$out/cora_prompt/model_final.pth" "$prompt"
fi
if [ ! -f "$labels" ]; then
  "$python" -m regionclip cora relabel --num-gpus "$gpus" --config-file "$configs/cora_prompt.yaml" \
    --annotations "$world/annotations/train_base.json" --images "$world/train" --output "$labels" \
    MODEL.WEIGHTS "$out/cora_prompt/model_final.pth" DATASETS.TEST "()" "${named[@]}"
fi
train cora cora_localizer MODEL.WEIGHTS "$teacher" MODEL.CORA.PROMPT_WEIGHTS "$prompt" "${named[@]}" "$@"
localizer=$out/cora/model_final.pth
evaluate_cora cora_proposals cora_localizer "$localizer" MODEL.CORA.PROMPT_WEIGHTS "" TEST.EVALUATE_PROPOSALS True
for factor in 1 8; do
  evaluate_cora "cora_factor$factor" cora_localizer "$localizer" MODEL.CORA.PROMPT_WEIGHTS "" \
    MODEL.CORA.NOVEL_CLASSES emoji294 MODEL.CORA.NOVEL_FACTOR "$factor"
done
echo "Done: metrics in $out/cora_*/inference/metrics.json"
