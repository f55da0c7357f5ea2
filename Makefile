# `make` lists the targets. Each sets up .venv by itself; ARGS goes to the command: make run ARGS="trainer.max_epochs=1"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
READY := $(VENV)/.ready
VERSION = $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")

.DEFAULT_GOAL := help
.PHONY: help setup lock audit run test test-all faults test-python test-lowest results docs check bench

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name what; do printf '%-12s%s\n' "$$name" "$$what"; done

setup: $(READY)  ## install into .venv the tested versions; does nothing when they are there

$(READY): pyproject.toml requirements.lock requirements-cuda.lock
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or later is needed; choose one with: make setup PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --no-deps --require-hashes -r requirements.lock
	$(PY) -c "from importlib.metadata import version; exit('+' not in version('torch'))" || $(PY) -m pip install --no-deps --require-hashes -r requirements-cuda.lock
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	touch $(READY)

lock: $(READY)  ## write the locks anew, with hashes; ARGS=--upgrade takes the newest versions
	$(PY) .ci/lock.py $(ARGS)

audit:  ## ask PyPI for known vulnerabilities of the locked versions
	$(PYTHON) -m venv build/audit
	build/audit/$(notdir $(BIN))/python -m pip install pip-audit
	build/audit/$(notdir $(BIN))/python -m pip_audit --no-deps --disable-pip -r requirements.lock

run: $(READY)  ## train the default model, a BiLSTM on reviews
	$(PY) run.py model=bilstm task=cls $(ARGS)

test: $(READY)  ## the quick tests
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-all: $(READY)  ## all tests, the slow ones too
	$(PY) -m pytest -n auto --dist loadfile -m "" $(ARGS)

faults: $(READY)  ## test every promise of docs/faults.md with real processes, and print which hold
	$(PY) -m tests.faults $(ARGS)

test-python:  ## the quick tests on another Python, in a .venv of its own: make test-python PYTHON=python3.10
	$(MAKE) test VENV=.venv-$(VERSION)

test-lowest: VENV := .venv-$(VERSION)-lowest
test-lowest: build/lowest.txt  ## the quick tests with the lowest versions that pyproject.toml allows, in a .venv of its own
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c build/lowest.txt -e '.[dev]'
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

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
