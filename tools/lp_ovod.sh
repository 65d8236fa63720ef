# Shared functions of the scripts in scripts/lp_ovod; each script sources this file from the repository root.
# The published scripts read these places; set them to use others.

source tools/published_cases.sh

regions=${LP_OVOD_REGIONS:-output/lp_ovod/regions}
proposals=${LP_OVOD_PROPOSALS:-proposals/val}
clip=${LP_OVOD_CLIP:-$weights/clip/ViT-B-32.pt}

# name_classes FILE VOCABULARY: embeds the names of a class list, without a template, unless the file exists
name_classes() {
  if [ -f "$1" ]; then return; fi
  "$python" -m regionclip concepts --vocabulary "$2" --templates name --output "$1" --weights "$clip" \
    --architecture ViT-B/32
}

# own_proposals: sets `boxes` to a folder of converted proposals, or to the detector's own RPN if there is none
own_proposals() {
  boxes=(MODEL.CLIP.CROP_REGION_TYPE "" MODEL.CLIP.OFFLINE_RPN_CONFIG "")
  if [ -f "$proposals/index.json" ]; then
    boxes=(MODEL.CLIP.CROP_REGION_TYPE FILE MODEL.CLIP.PROPOSAL_FILE "$proposals" MODEL.CLIP.OFFLINE_RPN_CONFIG "")
  fi
}
