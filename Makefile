# Everything this project does on one machine. `make run` and `make test` set up what they need first.
.DEFAULT_GOAL := help
.PHONY: help setup run test lint lock compile docs bench test-faults test-images clean

PYTHON ?= python3.11
BIN := .venv/bin
SEEDS ?= 200
# TensorFlow says a page of things at every start that nobody here can act on.
export TF_CPP_MIN_LOG_LEVEL ?= 3

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/.ready  ## make .venv with everything, from the lock file

.venv/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; install Python 3.11, or name one: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt install python3.11-venv"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

run: setup  ## clips -> images -> gate + classifier -> release -> version -> endpoint -> predictions
	$(BIN)/twophase run --quick $(ARGS)

test: setup  ## the tests (minutes); ARGS='-k name' for some of them
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: setup  ## formatting, style, types, who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

compile: setup  ## write compiled/ from the pipelines
	$(BIN)/twophase compile

docs: setup  ## write docs/cli.md from the command line itself
	$(BIN)/python -m typer twophase.cli utils docs --name twophase --output docs/cli.md

bench: setup  ## every benchmark, with docs/benchmarks.md's figures (long)
	$(BIN)/twophase bench $(ARGS)

test-faults: setup  ## kill -9 and other faults, SEEDS of them (long)
	SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/faults -m faults $(ARGS)

test-images: setup  ## build the images and run them (docker; long); BUILD='--network=host' for docker build
	$(BIN)/twophase containers build $(IMAGES) $(foreach option,$(BUILD),--option=$(option))
	TEST_IMAGES=1 $(BIN)/python -m pytest tests/images $(ARGS)

lock: setup  ## renew the lock files: the packages, and CUDA's libraries for the TensorFlow among them
	$(BIN)/uv pip compile --quiet --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.lock
	@echo 'tensorflow[and-cuda]' | $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform linux --generate-hashes --no-emit-index-url --no-header --no-annotate -c requirements.lock - -o .venv/cuda.all
	@{ grep '^#' containers/cuda.lock; sed -n '/^nvidia-/,/[^\\]$$/p' .venv/cuda.all; } >.venv/cuda.lock && mv .venv/cuda.lock containers/cuda.lock

clean:  ## remove what was set up and made
	rm -rf .venv twophase-work build dist
