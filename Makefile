# Every target runs by hand too: its lines are the commands.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
ARGS ?=

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Run a whole study on this machine; ARGS="--resume" and others pass through
	$(BIN)/vitrael demo $(ARGS)

rehearse: $(INSTALLED)  ## The demo, which must have nginx in front; ARGS pass through
	$(BIN)/vitrael demo --require-proxy $(ARGS)

test: $(INSTALLED)  ## Run the fast tests; ARGS="-k word" and others pass through
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $$(($(JOBS) + 1)) --dist loadfile --durations 15 $(ARGS)

# They wait for Flower most of the time, so that one processor has room for more than one.
test-federation: $(INSTALLED)  ## Run the tests over real Flower processes, nginx and network namespaces, and of many studies
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "federation and not slow and not faults" \
		-n $$(($(JOBS) + 1)) --dist loadfile --durations 15 $(ARGS)

test-faults: $(INSTALLED)  ## Kill, stop, cut off and fill the disk of each process: the matrix in brief
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults $(ARGS)

test-slow: $(INSTALLED)  ## Run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -s --durations 0 $(ARGS)

test-gpu: $(INSTALLED)  ## Run the tests that need a CUDA device
	$(BIN)/pytest -m gpu --durations 0 $(ARGS)

bench: $(INSTALLED)  ## Print our figures beside those of named peers
	OMP_NUM_THREADS=1 $(BIN)/pytest -m bench -s $(ARGS)

lint: $(INSTALLED)  ## Check style and the banned calls
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(INSTALLED)  ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

types: $(INSTALLED)  ## Check the types (mypy, strict)
	$(BIN)/mypy -p vitrael.core -p vitrael.privacy -p vitrael.client -p vitrael.server

layers: $(INSTALLED)  ## Check who may import whom
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## Build the pages into .docs-site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict --config-file .mkdocs.yml

constraints: $(INSTALLED)  ## Resolve the extras again; ARGS="--upgrade" moves the pins
	$(BIN)/pip-compile --quiet --all-extras --strip-extras --allow-unsafe --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
		--no-annotate --output-file deploy/constraints.txt $(ARGS) pyproject.toml
	sed -i -E -e 's/^([^ +]+)\+[a-z0-9.]+/\1/' -e '/^vitrael @/d' deploy/constraints.txt
	sed -i '1i # Written by make constraints: one resolution of all extras; torch pins its own CUDA parts.' \
		deploy/constraints.txt
	rm -rf vitrael.egg-info

clean:  ## Remove what the targets made, .venv excepted
	rm -rf .docs-site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist

# The environment: torch first, so that a CPU build that is already there or preferred stays.
# The build tool is one of the pins, hence no build isolation.
$(INSTALLED): pyproject.toml deploy/constraints.txt
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  for python in $(PYTHON) python3.11 python3; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'Python 3.11 or newer with its venv module is not installed: install it, or name one with make PYTHON=PATH.' >&2; \
	    exit 3; \
	  fi; \
	  $$found -m venv --clear .venv; \
	fi
	@echo 'Installing into .venv, 1 of 2: torch (some minutes the first time)'
	@$(PIP) install -c deploy/constraints.txt setuptools torch
	@echo 'Installing into .venv, 2 of 2: everything else'
	@PYTHONWARNINGS=ignore $(PIP) install -c deploy/constraints.txt --no-build-isolation -e '.[site,server,dev]'
	@rm -rf build vitrael.egg-info
	@touch $@
	@echo 'Installed.'

.PHONY: help demo rehearse test test-federation test-faults test-slow test-gpu bench lint format types layers docs constraints clean
