#!/usr/bin/env bash
# Train the whole recipe on the small world of emoji scenes: CLIP, proposer, concepts, region-text pretraining,
# zero-shot evaluation, transfer; and pack the result as a detector for `regionclip detect --model output/emoji/packed`.
#   bash tools/train_emoji.sh [KEY VALUE ...]
# Overrides go to every training. Given again, it goes on where it stopped; stages that are done are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

prepare
# The steps are short: one thread computes while the loader has the other core.
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
# The detector that is passed on shows few boxes, one for a thing; the figures above are those of all boxes, as published.
"$python" -m regionclip pack "$out/pretrain/model_final.pth" --config "$configs/detector.yaml" --half \
  --set "MODEL.CLIP.BB_RPN_WEIGHTS=$out/rpn/model_final.pth" --vocabulary emoji --output "$out/packed" \
  --set MODEL.CLIP.OFFLINE_RPN_NMS_THRESH=0.4 --set MODEL.ROI_HEADS.NMS_THRESH_TEST=0.3 \
  --set MODEL.ROI_HEADS.SCORE_THRESH_TEST=1.2
echo "Done: figures in $out/*/inference/metrics.json, detector in $out/packed"
