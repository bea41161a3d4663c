# Every target installs first what it needs, into .venv and nowhere else.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
VERSITYGW := github.com/versity/versitygw/cmd/versitygw@v1.8.0

.PHONY: help install demo test lint check test-deps lock golden clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## Set up .venv from the lock

# Bytecode is compiled here: it halves the start of every step, also where Python may not write it later.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 install")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.8"
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	touch $@

demo: install  ## Six windows of real scans through the whole pipeline, about two minutes
	$(BIN)/retrain demo

test: install  ## All tests; what is skipped is named with the command that enables it
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: install  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## All that CI does, but for the optional servers (make test-deps)

test-deps:  ## Optional: an S3 server that keeps conditional writes under concurrency, for the tests that need one
	@if command -v go >/dev/null; then GOBIN=$(CURDIR)/.tools go install $(VERSITYGW) && echo "versitygw: built"; \
	else echo "versitygw: not built, because Go (1.26 or newer) is not installed"; fi

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock: install  ## Resolve the dependencies anew: one lock for developers, subsets of it for the two images
	$(COMPILE) pyproject.toml --all-extras --upgrade --output-file requirements.lock
	$(COMPILE) pyproject.toml --constraint requirements.lock --extra train --extra validate --extra report --extra cluster \
	  --extra bundle --extra sign \
	  --output-file k8s/image/trainer.lock
	$(COMPILE) pyproject.toml --constraint requirements.lock --extra kfp --extra data --extra sign \
	  --output-file k8s/image/control.lock
	echo 'kfp==2.17.0' | $(COMPILE) - --no-deps --output-file k8s/image/executor.lock

golden: install  ## Rewrite the golden files of the tests
	RETRAIN_REGENERATE=1 $(BIN)/pytest -q tests/pipeline/test_compiled.py tests/unit/test_trainjob.py

clean:  ## Remove what was built
	rm -rf .venv .tools retrain-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
