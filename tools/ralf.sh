# Shared functions of tools/dist_train.sh and tools/dist_test.sh, RALF's published command lines on MMDetection; each
# sources this file from the repository root.

source tools/published_cases.sh

regions=${RALF_REGIONS:-output/ralf/regions}

# choose_config FILE: sets `config` to ours of a published one
choose_config() {
  case $(basename "$1") in
    detpro_ens_20e.py) config=configs/ralf/detpro_lvis.yaml ;;
    ral.py) config=configs/ralf/detpro_lvis_ral.yaml ;;
    raf.py) config=configs/ralf/detpro_lvis_raf.yaml ;;
    *.yaml) config=$1 ;;
    *) fail "unknown config $1: use detpro_ens_20e.py, ral.py, raf.py, or a YAML of configs/ralf" ;;
  esac
}

# read_options ARGUMENTS...: sets the overrides `options`
read_options() {
  options=()
  while [ $# -gt 0 ]; do
    case $1 in
      --work-dir)
        if [ $# -lt 2 ]; then fail "name a folder after --work-dir"; fi
        options+=(OUTPUT_DIR "$2")
        shift
        ;;
      --eval | bbox | segm | proposal) ;; # boxes and masks are evaluated whenever there are any
      --cfg-options) ;;
      [A-Z]*)
        if [ $# -lt 2 ]; then fail "name a value of $1"; fi
        options+=("$1" "$2")
        shift
        ;;
      model.roi_head.prompt_path=*)
        options+=(MODEL.CLIP.TEXT_EMB_PATH "${1#*=}" MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH "${1#*=}")
        ;;
      model.roi_head.load_feature=*) ;; # embeddings of proposals are always read from RALF_REGIONS
      model.roi_head.ral_path=*) options+=(MODEL.RALF.RAL.STORE "${1#*=}") ;;
      model.roi_head.raf_weight=*) options+=(MODEL.RALF.RAF.WEIGHTS "${1#*=}") ;;
      model.roi_head.raf_topk=*) options+=(MODEL.RALF.RAF.TOPK "${1#*=}") ;;
      *[a-z]*.*=* | -*) fail "unknown option $1: write it as KEY VALUE (docs/config.md)" ;;
      *) options+=("$1") ;;
    esac
    shift
  done
}
