# make demo    sets up and runs the whole way on drawn shapes: train, evaluate, predict, report
# make test    sets up and passes the tests
# Both need Python 3.11 or 3.12 (PYTHON=... chooses one) and a package index, nothing else.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Model Garden brings Keras 2 and much else, so its tests have an environment of their own.
GARDEN := $(VENV)-model-garden

.PHONY: demo test test-slow lint setup clean

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[pretrained,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/mrcnn-tf demo --output runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadscope

test-slow: $(READY) $(GARDEN)/.ready
	MRCNN_TF_MODEL_GARDEN_PYTHON=$(abspath $(GARDEN))/bin/python $(BIN)/python -m pytest -m slow

$(GARDEN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(GARDEN)
	$(GARDEN)/bin/python -m pip install --quiet --upgrade pip
	$(GARDEN)/bin/python -m pip install --quiet '.[model-garden]'
	@touch $@

clean:
	rm -rf $(VENV) $(GARDEN) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
