# Images of the command `regionclip` (docs/docker.md):
#   docker build --tag regionclip:cpu .
#   docker build --tag regionclip:cuda --build-arg DEVICE=cuda .
# Debian's packages are not pinned, so that a build gets their security fixes; bases by ${DEVICE} are stages.
# hadolint global ignore=DL3006,DL3008
ARG DEVICE=cpu

# For each device, where the operators are compiled, and where they run: both with the same Python.
FROM python:3.11-slim-bookworm AS build-cpu
RUN apt-get update && apt-get install --yes --no-install-recommends g++ ninja-build && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV TORCH_INDEX=$TORCH_INDEX FORCE_CUDA=0

FROM python:3.11-slim-bookworm AS run-cpu

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install --yes --no-install-recommends g++ ninja-build python3-dev python3-venv \
  && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
# Turing; Ampere and Ada; Hopper; Blackwell, and by translation what comes later.
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;9.0;10.0;12.0+PTX"
ENV TORCH_INDEX=$TORCH_INDEX FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$TORCH_CUDA_ARCH_LIST

# torch brings the libraries of CUDA, so that the smallest of NVIDIA's images serves.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS run-cuda
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*

FROM build-${DEVICE} AS build
ARG DEVICE
RUN python3 -m venv /opt/regionclip
ENV PATH=/opt/regionclip/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install --index-url "$TORCH_INDEX" torch==2.11.0 torchvision==0.26.0
# Before the sources, so that a change of them does not install the dependencies again.
WORKDIR /src
COPY pyproject.toml ./
COPY tools/install.py tools/
RUN python tools/install.py --to-run serve,demo
COPY setup.py MANIFEST.in README.md LICENSE NOTICE ./
COPY configs configs
COPY datasets datasets
COPY pretrained_ckpt pretrained_ckpt
COPY regionclip regionclip
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . && pip install --no-deps /wheel/*.whl && \
  { cat regionclip/ops/build_problem.txt 2> /dev/null || true; }
# A build of the operators that fails does not stop the installation, but an image without them is not wanted.
WORKDIR /wheel
RUN python -c 'import sys; from regionclip.ops import native_problem; sys.exit(native_problem(sys.argv[1]) or 0)' \
  "$DEVICE"

FROM run-${DEVICE}
ARG SOURCE=""
LABEL org.opencontainers.image.title="regionclip" \
  org.opencontainers.image.description="Open-vocabulary object detection: command, server and demo" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.source="$SOURCE"
# /cache holds text embeddings, and in pretrained_ckpt the weights, which are mounted; /work is for files of the user.
# Any user may write to them, for `docker run --user`.
RUN useradd --uid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin regionclip \
  && install --directory --mode 1777 /cache /cache/pretrained_ckpt /work
COPY --from=build /opt/regionclip /opt/regionclip
COPY LICENSE NOTICE /usr/share/doc/regionclip/
ENV PATH=/opt/regionclip/bin:$PATH HOME=/cache REGIONCLIP_CACHE=/cache REGIONCLIP_HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
EXPOSE 8000 7860
# Not by urllib, which would ask a proxy of the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", "import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('REGIONCLIP_PORT') or 8000), timeout=4); \
connection.request('GET', '/health'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["regionclip"]
CMD ["serve"]
