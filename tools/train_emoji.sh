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
# The packed detector returns few boxes, one per object; the metrics above are those of all boxes, as published.
"$python" -m regionclip pack "$out/pretrain/model_final.pth" --config "$configs/detector.yaml" --half \
  --set "MODEL.CLIP.BB_RPN_WEIGHTS=$out/rpn/model_final.pth" --vocabulary emoji --output "$out/packed" \
  --set MODEL.CLIP.OFFLINE_RPN_NMS_THRESH=0.4 --set MODEL.ROI_HEADS.NMS_THRESH_TEST=0.3 \
  --set MODEL.ROI_HEADS.SCORE_THRESH_TEST=1.2
echo "Done: metrics in $out/*/inference/metrics.json, detector in $out/packed"
