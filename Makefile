# Every target sets itself up: a fresh clone needs only Python 3.11+ with venv, and a C++ compiler.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test test-full bench-gpu lint format lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with the locked packages and DeepSpeed's extensions (once)

# azula declares torchvision, which nothing here uses and which has no CPU build; lola_ds and azula
# are therefore installed without their dependencies, which the lock file holds.
$(STAMP): requirements.lock pyproject.toml hatch_build.py $(wildcard lola_ds/data/native/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --no-build-isolation -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "from lola_ds.train.zero.extensions import build_extensions; build_extensions()"
	touch $@

demo: setup  ## the whole method on freshly solved Euler flows, about 15 minutes on 2 cores
	$(BIN)/python -m launch.demo

test: setup lint  ## every test but the long proofs, about 8 minutes on 2 cores
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup

test-full: setup lint  ## every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench-gpu: setup  ## kernels, attention, training steps and sampling on a GPU: benchmarks/*_gpu.csv
	@command -v nvidia-smi >/dev/null || { echo "bench-gpu needs a GPU: nvidia-smi is missing"; exit 1; }
	status=0; \
	$(BIN)/python -m pytest -q -n 0 tests/kernels tests/nn/test_attention.py tests/emulate/test_cuda_graph.py || status=1; \
	for name in kernels attention fusion step inference; do \
	  $(BIN)/python -m benchmarks.$$name out=benchmarks/$${name}_gpu.csv || status=1; \
	done; \
	exit $$status

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## write the installed versions back into requirements.lock
	$(BIN)/pip freeze --exclude-editable --exclude azula --exclude lola_ds \
	  | sed -E 's/\+[a-z0-9]+$$//; s/ @ .*//' | grep -viE '^(nvidia|cuda)-' > requirements.lock
	$(BIN)/pip freeze | grep -i '^azula==' > requirements-nodeps.lock

clean:  ## remove the environment and the demo's output
	rm -rf .venv demo
