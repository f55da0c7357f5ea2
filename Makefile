# `make` lists the targets. Each sets up .venv by itself; ARGS goes to the command: make run ARGS="trainer.max_epochs=1"
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
READY := $(VENV)/.ready
VERSION = $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all test-python test-lowest results docs check bench

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name what; do printf '%-12s%s\n' "$$name" "$$what"; done

setup: $(READY)  ## install into .venv the tested versions; does nothing when they are there

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or later is needed; choose one with: make setup PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c $(CONSTRAINTS) -e '.[dev]'
	touch $(READY)

run: $(READY)  ## train the default model, a BiLSTM on reviews
	$(PY) run.py model=bilstm task=cls $(ARGS)

test: $(READY)  ## the quick tests
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-all: $(READY)  ## all tests, the slow ones too
	$(PY) -m pytest -n auto --dist loadfile -m "" $(ARGS)

test-python:  ## the quick tests on another Python, in a .venv of its own: make test-python PYTHON=python3.10
	$(MAKE) test VENV=.venv-$(VERSION)

test-lowest:  ## the quick tests with the lowest versions that pyproject.toml allows, in a .venv of its own
	$(MAKE) test VENV=.venv-$(VERSION)-lowest CONSTRAINTS=build/lowest.txt

build/lowest.txt: pyproject.toml
	mkdir -p build
	sed -n 's/^  "\([a-z0-9-]*\)[^>"]*>=\([0-9.]*\).*/\1==\2/p' pyproject.toml > $@

bench: $(READY)  ## time our layers against torch.nn's
	$(PY) run.py -cn benchmark $(ARGS)

results: $(READY)  ## run all studies (hours; goes on where it was) and write RESULTS.md
	$(PY) run.py -cn results $(ARGS)

docs: $(READY)  ## write docs/options.md, every option and choice
	$(PY) run.py -cn docs $(ARGS)

check: $(READY)  ## lint, format, types, the import rules and that all imports are declared
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright --pythonpath $(PY)
	$(BIN)/lint-imports
	$(BIN)/deptry .
