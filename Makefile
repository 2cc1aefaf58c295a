# Every target does its own set-up; a machine needs Python 3.11 or newer with pip and venv, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# Processes that share the whole of the tests; each takes about 1 GB.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help serve test lint types contracts protos-check pytest format protos conformance demo-eval fuzz-harmony bench-gateway bench-demo clean

help:  ## Shows this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing Chorus into $(VENV) (once; a few minutes)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing Chorus and its development tools into $(VENV) (once; a few minutes)"
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed

serve: $(VENV)/.installed  ## Serves the built-in demo model; ARGS="--port 8080" passes options on.
	@$(BIN)/chorus serve $(ARGS)

test: lint types contracts protos-check pytest  ## Everything that must be green before a change lands.

lint: $(VENV)/.installed-dev  ## Style.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## Strict types.
	@$(BIN)/mypy

contracts: $(VENV)/.installed-dev  ## Which package may import which.
	@$(BIN)/lint-imports --no-cache

protos-check: $(VENV)/.installed-dev  ## The committed protobuf code is what the .proto files give.
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && PYTHON=$(abspath $(BIN)/python) \
	PATH="$(abspath $(BIN)):$$PATH" protos/generate.sh "$$tmp" && \
	for f in $$(cd "$$tmp" && find . -type f); do diff -u "protos/$$f" "$$tmp/$$f" || exit 1; done

pytest: $(VENV)/.installed-dev  ## Tests; ARGS="tests/unit -k scheduler" chooses.
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses=$(WORKERS))

format: $(VENV)/.installed-dev  ## Rewrites the code in house style.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(VENV)/.installed-dev  ## Writes the protobuf code anew.
	@PYTHON=$(abspath $(BIN)/python) PATH="$(abspath $(BIN)):$$PATH" protos/generate.sh

conformance: $(VENV)/.installed-dev  ## Writes the conformance tables of docs/api.md anew.
	@$(BIN)/python -m tests.conformance.table

demo-eval: $(VENV)/.installed  ## Asks the demo model 1,000 held-out questions through a running server of its own.
	@$(BIN)/python -m demo.eval $(ARGS)

fuzz-harmony: $(VENV)/.installed-dev  ## A million mutated streams through the harmony parser; ARGS="--seed 7" chooses others.
	@$(BIN)/python -m tests.fuzz.harmony --streams 1000000 $(ARGS)

bench-gateway: $(VENV)/.installed  ## CPU per streamed token, tokens per core, added time to first token.
	@$(BIN)/python benchmarks/gateway.py $(ARGS)

bench-demo: $(VENV)/.installed  ## Tokens per second of one stream, memory of the whole cluster.
	@$(BIN)/python benchmarks/demo.py $(ARGS)

clean:  ## Removes the virtual environment and caches.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/integration/demo_model/javascript/node_modules
