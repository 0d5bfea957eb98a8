# SPDX-License-Identifier: BSD-3-Clause
PYTHON ?= python3
# The torch to install where .venv has none; one that is there is never touched.
TORCH ?= torch==2.13.0
# For the tests of integrations: the torchvision of that torch, and libraries that depend on torch.
TORCHVISION ?= torchvision==0.28.0
LIBRARIES := build/integrations
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
CPP := $(shell find csrc tests bench -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# What the sanitizers run: every case on every tier of the C++ library, strides, empty selections, bad indices,
# random calls that do not fit.
SANITIZE_TESTS ?= -k '(cpu or rows) and not past_int32' tests/ops/test_masked_attention.py tests/ops/test_strides.py tests/ops/test_empties.py \
  tests/ops/test_token_index.py tests/kernels/test_hostile_calls.py tests/ops/test_biases.py tests/nn/test_rows.py

.DEFAULT_GOAL := help
.PHONY: help preflight build test integrations demo bench docs lint sanitize wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

test: lint ## set up .venv, build, lint, and run every test
	$(BIN)/pytest -n 2
	$(BIN)/python -c "import triton" 2>/dev/null || { echo "no triton for this platform: its kernels are not tested"; exit 0; }; \
	  TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -k triton tests

integrations: $(VENV)/.dev ## run the tests with transformers, timm, diffusers and smp, kept apart in build/
	$(PIP) install -q --target $(LIBRARIES) --upgrade --no-deps $(TORCHVISION) \
	  diffusers regex segmentation-models-pytorch timm tokenizers transformers
	PYTHONPATH=$(LIBRARIES) HF_HUB_OFFLINE=1 $(BIN)/pytest tests/integrations tests/nn/test_encoders.py

demo: $(VENV)/.built ## set up .venv, build, and compare dense with masked attention on photographs: out/demo/
	$(BIN)/maskattn demo --out out/demo

bench: $(VENV)/.dev ## measure against the peers into bench/results/
	$(BIN)/maskattn bench --grid full --out bench/results

docs: $(VENV)/.dev ## build the documentation site: out/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: $(VENV)/.dev ## set up .venv and build the C++ library into it

lint: $(VENV)/.dev ## ruff, clang-format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

sanitize: $(VENV)/.dev ## run the tests of the C++ library under the address and undefined-behaviour sanitizers
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DMASKATTN_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize
	tools/sanitized.sh build/sanitize $(BIN) $(SANITIZE_TESTS)

wheel: $(VENV)/.dev ## build a wheel into dist/, for every Python of this platform
	PATH=$(abspath $(BIN)):$$PATH tools/wheel.sh dist

clean: ## remove what was built (.venv stays)
	rm -rf build dist out *.egg-info maskattn_kernels/lib maskattn_kernels/_dev*.so maskattn_kernels/_build_report.json
	rm -f $(VENV)/.built $(VENV)/.dev

preflight:
	@sh tools/preflight.sh $(PYTHON) $(VENV)

$(BIN)/pip: | preflight
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/pip
	@echo "--- torch (only if $(VENV) has none)"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	touch $@

$(VENV)/.built: $(SOURCES) | $(VENV)/.torch preflight
	@echo "--- the package and its C++ library (a minute or two)"
	$(PIP) install -q "setuptools>=77" cmake ninja
	MASKATTN_BUILD=cpu $(PIP) install -q --no-build-isolation -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.built
	@echo "--- the tools of the tests"
	MASKATTN_BUILD=cpu $(PIP) install -q --no-build-isolation -e ".[dev]"
	touch $@
