# Shared functions of the scripts for the synthetic dataset; each script sources this file from the repository root.
# EMOJI_OUTPUT replaces the folder output/emoji, EMOJI_SCENES sets the number of scenes per split, EMOJI_PAIRS sets the
# number of captioned images, and EMOJI_PACKAGES names a folder with the packages of drawings.

source tools/published_cases.sh

configs=configs/EmojiOVD
out=${EMOJI_OUTPUT:-output/emoji}
world=${DETECTRON2_DATASETS:-datasets}/emoji
words=(MODEL.CLIP.TEXT_EMB_PATH "$out/concepts.safetensors")
boxes=(MODEL.CLIP.BB_RPN_WEIGHTS "$out/rpn/model_final.pth")
gt=(MODEL.CLIP.CROP_REGION_TYPE GT MODEL.CLIP.MULTIPLY_RPN_SCORE False)
teacher=$out/clip/model_final.pth

# Threads that wait for the data loader must not take CPU time from it.
export OMP_WAIT_POLICY=PASSIVE

# prepare: generates the dataset if it does not exist
prepare() {
  if [ -f "$world/annotations/captions_style.json" ] && [ -d "$world/pairs" ]; then return; fi
  local options=()
  if [ -n "${EMOJI_SCENES:-}" ]; then options+=(--scenes "$EMOJI_SCENES"); fi
  if [ -n "${EMOJI_PAIRS:-}" ]; then options+=(--pairs "$EMOJI_PAIRS"); fi
  if [ -n "${EMOJI_PACKAGES:-}" ]; then options+=(--packages "$EMOJI_PACKAGES"); fi
  "$python" tools/prepare_emoji.py --root "$world" "${options[@]}"
}

# train STAGE CONFIG KEY VALUE ...: trains a stage unless it is finished; resumes it if it was interrupted
train() {
  local stage=$1 config=$2
  shift 2
  if [ -f "$out/$stage/model_final.pth" ]; then return; fi
  "$python" tools/train_net.py --resume --num-gpus "$gpus" --config-file "$configs/$config.yaml" \
    OUTPUT_DIR "$out/$stage" "$@"
}

# pretrain STAGE KEY VALUE ...: region-text pretraining, initialized from the teacher
pretrain() {
  local stage=$1
  shift
  train "$stage" pretrain MODEL.WEIGHTS "$teacher" MODEL.CLIP.TEACHER_WEIGHTS "$teacher" \
    MODEL.CLIP.CONCEPT_POOL_EMB "$out/concepts.safetensors" "${boxes[@]}" \
    DATASETS.PATH_TRAIN "('$world/annotations/captions_train.json',)" "$@"
}

# transfer STAGE FROM KEY VALUE ...: training on boxes of base concepts, from the weights of another stage
transfer() {
  local stage=$1 from=$2
  shift 2
  train "$stage" transfer MODEL.WEIGHTS "$out/$from/model_final.pth" "${boxes[@]}" \
    MODEL.CLIP.TEXT_EMB_PATH "$out/base_concepts.safetensors" \
    MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "$out/concepts.safetensors" "$@"
}

# evaluate NAME STAGE KEY VALUE ...: zero-shot, with all class names
evaluate() {
  local name=$1 stage=$2
  shift 2
  if [ -f "$out/$name/inference/metrics.json" ]; then return; fi
  "$python" tools/train_net.py --eval-only --num-gpus "$gpus" --config-file "$configs/detector.yaml" \
    MODEL.WEIGHTS "$out/$stage/model_final.pth" OUTPUT_DIR "$out/$name" "${words[@]}" "${boxes[@]}" "$@"
}

# embed VOCABULARY FILE: writes the class embeddings of a vocabulary unless the file exists
embed() {
  if [ -f "$out/$2.safetensors" ]; then return; fi
  "$python" -m regionclip concepts --vocabulary "$1" --output "$out/$2.safetensors" \
    --weights "$teacher" --architecture "$configs/emoji_clip.json"
}
