# CORA's published command lines; each script in configs/COCO sources this file from the repository root.

source tools/published_cases.sh

# localize RN50|RN50x4 CONFIG PROMPT NAME GPUS LAUNCHER [--resume FILE] [--eval] [--pseudo_box FILE] [KEY VALUE ...]
localize() {
  if [ $# -lt 6 ]; then fail "expected NAME GPUS local, then options"; fi
  local clip=$1 config=configs/cora/$2.yaml prompt=logs/$3 name=$4 count=$5 launcher=$6
  shift 6
  if [ "$launcher" != local ]; then
    fail "launcher '$launcher': use local; under SLURM, call this script in each task (docs/scaling.md)"
  fi
  local file="" pseudo="" flags=() overrides=()
  while [ $# -gt 0 ]; do
    case $1 in
      --resume)
        if [ $# -lt 2 ]; then fail "--resume needs a file"; fi
        file=$2
        shift
        ;;
      --pseudo_box)
        if [ $# -lt 2 ]; then fail "--pseudo_box needs a file"; fi
        pseudo=$2
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
  if [ -n "$pseudo" ]; then
    embed_pseudo_classes "$pseudo" "$clip" "${file:-$weights/clip/$clip.pt}"
    settings+=(MODEL.CORA.PSEUDO_BOXES "$pseudo" MODEL.CORA.PSEUDO_EMBEDDINGS "${pseudo%.json}_$clip.safetensors")
  fi
  exec "$python" ./tools/train_net.py --num-gpus "$count" --config-file "$config" "${flags[@]}" \
    "${settings[@]}" "${overrides[@]}"
}

# embed_classes VOCABULARY CLIP CHECKPOINT: writes class embeddings with CORA's templates, where they are missing.
embed_classes() {
  if [ -f "logs/$1_$2.safetensors" ]; then return; fi
  "$python" -m regionclip concepts --vocabulary "$1" --templates cora --architecture "$2" --weights "$3" \
    --output "logs/$1_$2.safetensors"
}

# embed_pseudo_classes FILE CLIP CHECKPOINT: writes embeddings of all names in a file of pseudo boxes beside it.
embed_pseudo_classes() {
  local output=${1%.json}_$2.safetensors names=${1%.json}.txt
  if [ -f "$output" ]; then return; fi
  "$python" -c 'import json, sys
print(*sorted({box["category_name"] for box in json.load(open(sys.argv[1]))}), sep="\n")' "$1" > "$names"
  "$python" -m regionclip concepts --vocabulary "$names" --templates cora --architecture "$2" --weights "$3" \
    --output "$output"
}
