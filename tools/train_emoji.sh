#!/usr/bin/env bash
# Run the full recipe on the synthetic dataset of emoji scenes: CLIP, RPN, concepts, region-text pretraining, zero-shot
# evaluation, transfer. Then pack the result as a detector for `regionclip detect --model output/emoji/packed`.
#   bash tools/train_emoji.sh [KEY VALUE ...]
# Overrides apply to every training. Run again, the script resumes; finished stages are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

prepare
# The steps are short: one thread computes, and the data loader uses the other core.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} train clip clip DATASETS.PATH_TRAIN "('$world/pairs',)" "$@"
embed emoji concepts
embed emoji880 base_concepts
train rpn rpn MODEL.WEIGHTS "$teacher" "$@"
pretrain pretrain "$@"
for stage in clip pretrain; do
  evaluate "zero_shot_gt_$stage" "$stage" "${gt[@]}"
  evaluate "zero_shot_rpn_$stage" "$stage"
done
for stage in clip pretrain; do
  evaluate "style_gt_$stage" "$stage" DATASETS.TEST "('emoji_style',)" "${gt[@]}"
  evaluate "style_rpn_$stage" "$stage" DATASETS.TEST "('emoji_style',)"
  transfer "transfer_$stage" "$stage" "$@"
done
# The packed detector returns few boxes, one per object, with calibrated scores, and a threshold fitted on the
# validation scenes; the metrics above are those of all boxes, as published.
shown=(MODEL.CLIP.OFFLINE_RPN_NMS_THRESH 0.4 MODEL.ROI_HEADS.NMS_THRESH_TEST 0.3)
evaluate shown_pretrain pretrain "${shown[@]}" MODEL.ROI_HEADS.NMS_ACROSS_CLASSES True
calibration=$out/shown_pretrain/inference/calibration.json
fitted=()
if grep -qs best_temperature "$calibration"; then fitted=(--calibration "$calibration"); fi  # needs a right detection
"$python" -m regionclip pack "$out/pretrain/model_final.pth" --config "$configs/detector.yaml" --half \
  --set "${boxes[0]}=${boxes[1]}" --set "${shown[0]}=${shown[1]}" --set "${shown[2]}=${shown[3]}" --vocabulary emoji \
  "${fitted[@]}" --notes "$configs/notes.md" --license CC-BY-4.0 \
  --card "$out/zero_shot_gt_pretrain/inference/metrics.json" \
  --card "$out/zero_shot_rpn_pretrain/inference/metrics.json" \
  --card "$out/style_rpn_pretrain/inference/metrics.json" --output "$out/packed"
echo "Done: metrics in $out/*/inference/metrics.json, detector in $out/packed"
