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
# Weights & Biases and MLflow are half a gigabyte that nothing else needs.
TRACKERS := $(VENV)-trackers

.PHONY: demo test test-slow lint setup clean

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[pretrained,serving,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/mrcnn-tf demo --output runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In two parts: TensorFlow keeps some memory of every model that a process has trained.
FIRST := tests/data tests/modeling tests/ops
PYTEST := $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadscope

test: lint
	$(PYTEST) $(FIRST)
	$(PYTEST) $(addprefix --ignore=,$(FIRST))

test-slow: $(READY) $(GARDEN)/.ready $(TRACKERS)/.ready
	MRCNN_TF_MODEL_GARDEN_PYTHON=$(abspath $(GARDEN))/bin/python MRCNN_TF_TRACKERS_PYTHON=$(abspath $(TRACKERS))/bin/python \
		$(BIN)/python -m pytest -m slow

$(GARDEN)/.ready: EXTRA := model-garden
$(TRACKERS)/.ready: EXTRA := trackers
$(GARDEN)/.ready $(TRACKERS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet '.[$(EXTRA)]'
	@touch $@

clean:
	rm -rf $(VENV) $(GARDEN) $(TRACKERS) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
