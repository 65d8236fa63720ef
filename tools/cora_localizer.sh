# CORA's published command lines; each script in configs/COCO sources this file from the repository root.

source tools/published_cases.sh

# localize RN50|RN50x4 CONFIG PROMPT NAME GPUS LAUNCHER [--resume FILE] [--eval] [KEY VALUE ...]
localize() {
  if [ $# -lt 6 ]; then fail "expected NAME GPUS local, then options"; fi
  local clip=$1 config=configs/cora/$2.yaml prompt=logs/$3 name=$4 count=$5 launcher=$6
  shift 6
  if [ "$launcher" != local ]; then
    fail "launcher '$launcher': use local; under SLURM, call this script in each task (docs/scaling.md)"
  fi
  local file="" flags=() overrides=()
  while [ $# -gt 0 ]; do
    case $1 in
      --resume)
        if [ $# -lt 2 ]; then fail "--resume needs a file"; fi
        file=$2
        shift
        ;;
      --eval) flags+=(--eval-only) ;;
      --*) fail "option '$1': write KEY VALUE instead, with a key of docs/config.md" ;;
      *) overrides+=("$1") ;;
    esac
    shift
  done
  local settings=(
    OUTPUT_DIR "logs/$name"
    MODEL.CLIP.TEXT_EMB_PATH "logs/coco48_$clip.safetensors"
    MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "logs/coco65_$clip.safetensors"
    MODEL.CORA.NOVEL_CLASSES coco17 MODEL.CORA.NOVEL_FACTOR 8.0 MODEL.CORA.CLIP_BOXES False
  )
  if [ -n "$file" ]; then
    settings+=(MODEL.WEIGHTS "$file")
  else
    flags+=(--resume)
    settings+=(MODEL.WEIGHTS "$weights/clip/$clip.pt" MODEL.CORA.PROMPT_WEIGHTS "$prompt")
  fi
  for classes in coco48 coco65; do
    embed_classes "$classes" "$clip" "${file:-$weights/clip/$clip.pt}"
  done
  exec "$python" ./tools/train_net.py --num-gpus "$count" --config-file "$config" "${flags[@]}" \
    "${settings[@]}" "${overrides[@]}"
}

# embed_classes VOCABULARY CLIP CHECKPOINT: writes class embeddings with CORA's templates, where they are missing.
embed_classes() {
  if [ -f "logs/$1_$2.safetensors" ]; then return; fi
  "$python" -m regionclip concepts --vocabulary "$1" --templates cora --architecture "$2" --weights "$3" \
    --output "logs/$1_$2.safetensors"
}
