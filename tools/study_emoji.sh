#!/usr/bin/env bash
# Ablations of the recipe: further seeds, and pretraining without one part. Run tools/train_emoji.sh first.
#   bash tools/study_emoji.sh [KEY VALUE ...]
# Overrides apply to every training. Run again, the script resumes. `python tools/emoji_table.py` prints the available
# metrics.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/emoji_stages.sh

# compare STAGE KEY VALUE ...: pretrains with overrides, and evaluates
compare() {
  local stage=$1
  shift
  pretrain "$stage" "$@"
  evaluate "zero_shot_gt_$stage" "$stage" "${gt[@]}"
  evaluate "zero_shot_rpn_$stage" "$stage"
}

if [ ! -f "$teacher" ]; then fail "no teacher in $teacher: run tools/train_emoji.sh first"; fi
"$python" - "$out/quarter.txt" << 'PROGRAM'
import sys
from pathlib import Path
from regionclip.data.class_lists import CLASS_LISTS
Path(sys.argv[1]).write_text("".join(f"{name}\n" for name in CLASS_LISTS["emoji"]()[::4]))
PROGRAM
embed "$out/quarter.txt" quarter_of_concepts
# A third of the steps shows the effect of a part; the full recipe with as many steps is the reference.
short=(SOLVER.MAX_ITER 500)
compare short "${short[@]}" "$@"
compare without_distillation MODEL.CLIP.DISTILL_LOSS_WEIGHT 0.0 "${short[@]}" "$@"
compare without_contrast MODEL.CLIP.CONTRASTIVE_LOSS_WEIGHT 0.0 "${short[@]}" "$@"
compare without_captions MODEL.CLIP.PRETRAIN_IMG_TXT_LEVEL False "${short[@]}" "$@"
compare aligned_teacher MODEL.CLIP.TEACHER_REGIONS aligned "${short[@]}" "$@"
compare random_boxes MODEL.CLIP.CROP_REGION_TYPE RANDOM "${short[@]}" "$@"
compare quarter_pool MODEL.CLIP.CONCEPT_POOL_EMB "$out/quarter_of_concepts.safetensors" "${short[@]}" "$@"
for seed in 2 3; do
  compare "pretrain_seed$seed" SEED "$seed" "$@"
  transfer "transfer_pretrain_seed$seed" "pretrain_seed$seed" SEED "$seed" "$@"
  transfer "transfer_clip_seed$seed" clip SEED "$seed" "$@"
done
echo "Done: metrics in $out/*/inference/metrics.json"
