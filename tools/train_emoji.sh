#!/usr/bin/env bash
# Run the full recipe on the synthetic dataset of emoji scenes: CLIP, RPN, concepts, region-text pretraining, zero-shot
# evaluation, transfer. Then pack the fine-tuned student for `regionclip detect --model output/emoji/packed/emoji`.
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
# The packed detector is the fine-tuned student, which also refines boxes. It returns few, one per object, with calibrated
# scores, and a threshold fitted on the validation scenes; the metrics above are those of all boxes, as published.
packed=transfer_pretrain
refined=(MODEL.CLIP.NO_BOX_DELTA False)
shown=(MODEL.CLIP.OFFLINE_RPN_NMS_THRESH 0.4 MODEL.ROI_HEADS.NMS_THRESH_TEST 0.3)
evaluate "given_boxes_$packed" "$packed" "${gt[@]}"
evaluate "style_rpn_$packed" "$packed" DATASETS.TEST "('emoji_style',)" "${refined[@]}"
evaluate "shown_$packed" "$packed" "${refined[@]}" "${shown[@]}" MODEL.ROI_HEADS.NMS_ACROSS_CLASSES True
calibration=$out/shown_$packed/inference/calibration.json
fitted=()
if grep -qs best_temperature "$calibration"; then fitted=(--calibration "$calibration"); fi  # needs a right detection
"$python" -m regionclip pack "$out/$packed/model_final.pth" --config "$configs/detector.yaml" --half \
  --text-weights "$teacher" --set "${boxes[0]}=${boxes[1]}" --set "${refined[0]}=${refined[1]}" \
  --set "${shown[0]}=${shown[1]}" --set "${shown[2]}=${shown[3]}" --vocabulary emoji "${fitted[@]}" \
  --notes "$configs/notes.md" --license CC-BY-4.0 \
  --card "$out/given_boxes_$packed/inference/metrics.json" \
  --card "$out/$packed/inference/metrics.json" \
  --card "$out/style_rpn_$packed/inference/metrics.json" --output "$out/packed/emoji"
echo "Done: metrics in $out/*/inference/metrics.json, detector in $out/packed/emoji"
