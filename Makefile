# `make` lists the targets. Each sets up .venv by itself; ARGS goes to the command: make run ARGS="trainer.max_epochs=1"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all results docs check bench

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name what; do printf '%-10s%s\n' "$$name" "$$what"; done

setup: $(READY)  ## install into .venv the tested versions; does nothing when they are there

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or later is needed; choose one with: make setup PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	touch $(READY)

run: $(READY)  ## train the default model, a BiLSTM on reviews
	$(PY) run.py model=bilstm task=cls $(ARGS)

test: $(READY)  ## the quick tests
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-all: $(READY)  ## all tests, the slow ones too
	$(PY) -m pytest -n auto --dist loadfile -m "" $(ARGS)

bench: $(READY)  ## time our layers against torch.nn's
	$(PY) run.py -cn benchmark $(ARGS)

results: $(READY)  ## run all studies (hours; goes on where it was) and write RESULTS.md
	$(PY) run.py -cn results $(ARGS)

docs: $(READY)  ## write docs/options.md, every option and choice
	$(PY) run.py -cn docs $(ARGS)

check: $(READY)  ## lint, format, types and the import rules
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright --pythonpath $(PY)
	$(BIN)/lint-imports
