#!/usr/bin/env bash
# Build an image, run it as compose.yaml says, and ask it: health, a detection, weights that are mounted, a stop.
#   bash tests/docker.sh docker [cpu|cuda]    by Docker with compose; the image for CUDA is built but not run
#   bash tests/docker.sh buildah              the image for CPU without Docker, by Buildah in chroots, as root on Debian
#                                             12; a Debian made by debootstrap takes the place of the base image
# TORCH_INDEX names another package index for torch, SOURCE the address of the repository for a label.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${1:?docker or buildah} device=${2:-cpu}
arguments=(--build-arg DEVICE="$device" --build-arg SOURCE="${SOURCE:-}")
if [ -n "${TORCH_INDEX:-}" ]; then arguments+=(--build-arg TORCH_INDEX="$TORCH_INDEX"); fi
work=$(mktemp -d)
mkdir "$work/weights"
cp -r pretrained_ckpt/emoji "$work/weights/mounted"
user=$(sed -n 's/^USER \(.*\):.*/\1/p' Dockerfile)

expect() {  # WHAT ACTUAL EXPECTED
  if [ "$2" != "$3" ]; then
    echo "error: $1: expected $3, got $2" >&2
    exit 1
  fi
}

ask() { curl --silent --show-error --fail --noproxy '*' "$@"; }

check_answers() {
  ask http://127.0.0.1:8000/health | tee "$work/health"
  echo
  expect "the detector" "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["model"])' < "$work/health")" mounted
  ask --form image=@datasets/demo_scenes/000243.jpg --form words="hamster, guitar" http://127.0.0.1:8000/detect |
    tee "$work/detections"
  echo
  expect "the first word" "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["detections"][0]["word"])' \
    < "$work/detections")" hamster
  ask --output /dev/null http://127.0.0.1:7860/
}

with_docker() {
  docker build "${arguments[@]}" --tag "regionclip:$device" .
  if [ "$device" = cuda ]; then return; fi
  compose=(docker compose --project-name regionclip-check)
  trap '"${compose[@]}" down --volumes; rm -rf "$work"' EXIT
  export REGIONCLIP_WEIGHTS=$work/weights REGIONCLIP_MODEL=pretrained_ckpt/mounted
  "${compose[@]}" up --detach --wait --wait-timeout 300 || { "${compose[@]}" logs && exit 1; }
  check_answers
  expect "the user" "$("${compose[@]}" exec --no-TTY server id -u)" "$user"
  "${compose[@]}" stop
  "${compose[@]}" logs server | grep "Stopped: all requests"
}

# Make an image of Debian with its own Python 3.11, under the name of the base image.
make_base() {
  debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,ca-certificates bookworm \
    "$work/debian" > "$work/log" || { tail "$work/log" && exit 1; }
  ln -s /usr/bin/python3 "$work/debian/usr/local/bin/python"
  for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do  # what pip needs here to reach its index
    if [ -f "$file" ]; then cp "$file" "$work/debian$file"; fi
  done
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add --quiet "$container" "$work/debian" / > /dev/null
  "${buildah[@]}" commit --quiet --rm "$container" "$1" > /dev/null
}

in_container() {
  "${buildah[@]}" run --env REGIONCLIP_MODEL=pretrained_ckpt/mounted \
    --volume "$work/weights:/cache/pretrained_ckpt:ro" "$container" -- "$@"
}

# Send a signal to a command in the container, which has to run as the image's user; Buildah passes on none that it gets.
signal() { pkill --signal "$1" --uid "$user" --full "^/opt/regionclip/bin/python.* /opt/regionclip/bin/regionclip $2"; }

clean_up() {
  for command in serve demo; do signal KILL $command || true; done
  wait
  "${buildah[@]}" rm --all > /dev/null
  "${buildah[@]}" rmi --all --force > /dev/null
  rm -rf "$work"
}

with_buildah() {
  export BUILDAH_ISOLATION=chroot
  buildah=(buildah --root "$work/storage" --runroot "$work/run")
  trap clean_up EXIT
  make_base "docker.io/library/$(sed -n "s/^FROM \(.*\) AS build-$device$/\1/p" Dockerfile)"
  # Buildah 1.28 does not find a stage whose name has an argument.
  sed "s/\${DEVICE}/$device/" Dockerfile > "$work/Dockerfile"
  "${buildah[@]}" build --pull-never --format docker "${arguments[@]}" --tag regionclip --file "$work/Dockerfile" .
  container=$("${buildah[@]}" from --pull-never regionclip)
  in_container regionclip doctor
  in_container regionclip serve > "$work/serve.log" 2>&1 &
  server=$!
  in_container regionclip demo --no-browser > "$work/demo.log" 2>&1 &
  health=$("${buildah[@]}" inspect --type image --format '{{index .Docker.Config.Healthcheck.Test 3}}' regionclip)
  for _ in {1..60}; do
    if in_container python -c "$health" 2> /dev/null && ask --output /dev/null http://127.0.0.1:7860/; then break; fi
    sleep 5
  done
  in_container python -c "$health" || { cat "$work"/*.log && exit 1; }
  check_answers
  signal TERM serve
  wait "$server"
  grep "Stopped: all requests" "$work/serve.log"
}

"with_$engine"
echo "Done: the image for $device"
