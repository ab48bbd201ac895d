# What a user and a developer do here; `make` alone lists it.
#
#   PYTHON       the Python that .venv is made with, 3.11 or newer
#   TORCH_INDEX  an index that torch alone comes from, such as one of CPU builds; else pip's own
# pip's own settings (PIP_INDEX_URL, PIP_CERT, ...) are respected.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow check wheel-test clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
TORCH_FIRST := $(if $(TORCH_INDEX),$(INSTALL) --no-deps --index-url "$(TORCH_INDEX)" torch)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.demo ## install compress with its text encoder into .venv

demo: $(VENV)/.demo ## compress the example teacher, and measure the student on real digits
	$(BIN)/compress examples/digits/teacher.pt --labels examples/digits/labels.txt --target jetson -o out/digits-jetson
	$(BIN)/python examples/digits/evaluate.py out/digits-jetson

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev ## run the tests, those that take minutes too
	$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.dev ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel-test: $(VENV)/.dev ## build the wheel and try it outside the checkout
	scripts/test-wheel.sh $(BIN)/python

clean: ## remove what was built and made; .venv stays
	rm -rf build dist out src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(TORCH_FIRST)
	$(INSTALL) --editable '.[encoder,examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(TORCH_FIRST)
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "compress needs Python 3.11 or newer, which '$(PYTHON)' is not. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade pip
