# `make demo` and `make test` need Python >= 3.11, make and git; everything else they set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test simulate check bench clean
help: ## what each target does
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"windlass needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

setup: $(VENV)/.ready ## make .venv with everything in it

demo: setup ## the main job on this machine: stream, producer, windows, table, verified
	$(BIN)/windlass demo

test: setup ## the tests that this machine has the tools for; ALL=1 with the heavy ones
	$(if $(ALL),WINDLASS_ALL=1) $(BIN)/pytest

simulate: setup ## 10,000 worlds of faults against the taxi pipeline: none may be inexact
	$(BIN)/windlass simulate examples/taxi/app.py:trips --runs 10000 --records 60 --shards 2 --keys 4 --faults all

check: setup ## style, types, arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

screenshots: setup ## the console's views in both themes into build/screenshots, and the README's picture
	$(BIN)/python -m tests.screenshots

bench: setup ## the figures, side by side, as ratios
	$(BIN)/python -m bench

docs: setup ## write docs/cli.md from the commands' help
	$(BIN)/python -m tests.cli_reference

clean: ## remove what was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
