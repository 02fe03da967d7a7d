# Roastery in a container, from the pinned packages of requirements.lock.
#
#   docker build -t roastery .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" roastery                              # snakemake --cores all
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" roastery snakemake --cores all --config compute=gpu
#
# PyTorch's default build for Linux has CUDA and runs on processors, too. For an image of a third of the size, without CUDA, give
# the index of PyTorch's builds for processors, which its installation page names: --build-arg TORCH_INDEX=URL.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG TORCH_INDEX=""
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# libgomp and libgl are not needed: OpenCV is the headless one, and PyTorch brings its own.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv "$VIRTUAL_ENV"
WORKDIR /opt/roastery
COPY . .
# PyTorch first: what else is installed must not replace it.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.lock)" \
 && pip install --constraint requirements.lock ".[workflow,leveldb]" \
 && roastery doctor
# Any user may run it, also one without a name: caches go below HOME, and Snakemake asks for USER.
ENV HOME=/tmp USER=roastery MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
CMD ["snakemake", "--cores", "all"]
