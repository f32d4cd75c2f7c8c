# The image of hubbot: the action, `docker run`, Hugging Face Jobs and job containers all start here.
#   docker build -t hubbot .                                             torch with CUDA
#   docker build -t hubbot --build-arg TORCH=2.13.0+cpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .     torch for the CPU alone
# What is installed, at which version, is the Makefile's and requirements.lock's to say, as on any machine.

ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

# --- llama.cpp, once, for every x86-64 --------------------------------------------------------------------
FROM ${BASE} AS llama
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends cmake gcc g++ ninja-build >/dev/null
WORKDIR /opt/hubbot
# these alone, so that other changes of hubbot leave this stage as it is
COPY hubbot/__init__.py hubbot/environment.py hubbot/errors.py hubbot/llamacpp.py hubbot/setup.py hubbot/
# One CPU backend for each generation of x86-64 (LLAMA_VARIANTS=OFF: the oldest alone, for a quick build);
# ggml loads the best that the machine can run, from GGML_BACKEND_DIR.
ARG LLAMA_VARIANTS=ON
RUN python3 -m hubbot.setup /opt/llama.cpp -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON \
      -DGGML_BACKEND_DIR=/opt/llama.cpp/build/bin -DGGML_CPU_ALL_VARIANTS=${LLAMA_VARIANTS} \
 && cd /opt/llama.cpp && strip --strip-unneeded build/bin/* \
 && rm log \
 && find build -mindepth 1 -maxdepth 1 ! -name bin -exec rm -rf {} + \
 && find source -mindepth 1 -maxdepth 1 \
      ! -name conversion ! -name gguf-py ! -name 'convert_hf_to_gguf*.py' ! -name ggml ! -name LICENSE ! -name licenses -exec rm -rf {} +

# --- Python: what the lock names, torch, and none of what only building and testing need ------------------
FROM ${BASE} AS python
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ gcc make python3-dev >/dev/null
WORKDIR /opt/hubbot
COPY Makefile pyproject.toml requirements.lock README.md LICENSE ./
COPY hubbot/__init__.py hubbot/
RUN mkdir templates
ARG TORCH=2.13.0
ARG TORCH_INDEX=
ARG SOURCE_DATE_EPOCH=1700000000
# bytecode that names its source by hash, not by time, is the same in every build
RUN PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" \
      make --no-print-directory environment TORCH="${TORCH}" \
 && .venv/bin/pip uninstall --quiet --yes cmake hatchling hypothesis import-linter mypy ninja \
      pytest pytest-xdist ruff types-PyYAML uv check-jsonschema yamllint zizmor \
 && rm -rf .venv/bin/__pycache__ .venv/build.lock \
 && find .venv -name __pycache__ -type d -prune -exec rm -rf {} + \
 && { .venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash .venv/lib >/dev/null || true; } # some hold templates

# --- ggml's slow encoders once more, vectorised, and loops of rounding; they lie beside llama.cpp's libraries ----
# and, for the compute capabilities that CUDA names ("8.0 8.6 8.9 9.0 12.0", 40 minutes of one core for one), llama.cpp's part for cards.
FROM python AS cuda
COPY --from=llama /opt/llama.cpp /opt/llama.cpp
COPY hubbot/__init__.py hubbot/environment.py hubbot/errors.py hubbot/llamacpp.py hubbot/setup.py hubbot/setup_cuda.py hubbot/
ARG CUDA=
RUN [ -z "${CUDA}" ] || { apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends cmake ninja-build >/dev/null \
 && .venv/bin/python -m hubbot.setup_cuda /opt/llama.cpp ${CUDA}; }

FROM python AS encoders
COPY --from=cuda /opt/llama.cpp /opt/llama.cpp
COPY hubbot hubbot/
RUN export HUBBOT_LLAMA_CPP=/opt/llama.cpp && .venv/bin/python -m hubbot.formats.gguf.fast \
 && .venv/bin/python -m hubbot.formats.gguf.descent && rm -rf /opt/llama.cpp/source/ggml

# --- the image ------------------------------------------------------------------------------------------
FROM ${BASE}
# gcc and the C library's headers: Triton compiles its launchers when they are first used.
# git: where it is absent, actions/checkout empties the workspace of a job container, `clean: false` or not.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc git libc6-dev libgomp1 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
      /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
 && install -d -o 1000 -g 1000 /work
COPY --from=encoders /opt/llama.cpp /opt/llama.cpp
COPY --from=python /opt/hubbot/.venv /opt/hubbot/.venv
COPY pyproject.toml README.md LICENSE /opt/hubbot/
COPY templates /opt/hubbot/templates
COPY hubbot /opt/hubbot/hubbot
ENV PATH=/opt/hubbot/.venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    HUBBOT_LLAMA_CPP=/opt/llama.cpp \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# No USER: a runner hands over a workspace of its own user's, so the entry point becomes who owns /work
# or the workspace; `docker run --user` works as well.
WORKDIR /work
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG SOURCE=https://github.com/hubbot/hubbot
LABEL org.opencontainers.image.title="hubbot" \
      org.opencontainers.image.description="Quantizes Hugging Face models to GGUF, GPTQ and bitsandbytes, measures every variant and publishes what passes." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.documentation="${SOURCE}/tree/main/docs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["hubbot-action"]
