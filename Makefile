# make demo    sets up and runs the whole way on drawn shapes: train, evaluate, predict, report
# make test    sets up and passes the tests
# make test-slow, test-arm64, test-gpu-delegate, test-web    those that take longer; the second and third load Debian packages,
#              and need no root; the last needs Node.js and Chromium
# make benchmark    measures this beside torchvision and Model Garden, half an hour (DETECTRON2=/path/to/python adds detectron2)
# Both need Python 3.11 or 3.12 (PYTHON=... chooses one) and a package index, nothing else.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Model Garden brings Keras 2 and much else, so its tests have an environment of their own.
GARDEN := $(VENV)-model-garden
# The TFLite runtime of many devices needs Python 3.11 and an old numpy.
RUNTIME := $(VENV)-tflite-runtime
PYTHON311 := $(shell for p in python3.11 $(PYTHON); do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
# Weights & Biases and MLflow are half a gigabyte that nothing else needs.
TRACKERS := $(VENV)-trackers

# Small TFLite bundles with what they should find; an ARM machine and a GPU in software to try them on.
CASES := build/edge-cases
ARM64 := build/arm64
SWIFTSHADER := build/swiftshader

.PHONY: demo test test-tflite-runtime test-slow test-arm64 test-gpu-delegate test-web benchmark lint setup clean

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[pretrained,serving,edge,tfds,fast-eval,dev]'
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
	$(PYTEST) $(addprefix --ignore=,$(FIRST) tests/edge)
	$(MAKE) test-tflite-runtime

$(CASES)/.ready: $(READY) $(wildcard mrcnn_tf/*.py mrcnn_tf/*/*.py export/*.py export/edge/* tests/conftest.py tests/edge/*.py)
	rm -rf $(CASES)
	$(BIN)/python -m tests.edge.make_cases $(CASES)
	@touch $@

# Without this package, which would bring TensorFlow.
$(RUNTIME)/.ready: pyproject.toml
	$(PYTHON311) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet Pillow pytest $$($(@D)/bin/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tflite-runtime"])')
	@touch $@

# No conftest: it needs TensorFlow.
ON_DEVICE := -m pytest --noconftest -p no:cacheprovider tests/edge/test_tflite_runtime.py
EDGE_CASES := MRCNN_TF_EDGE_CASES=$(abspath $(CASES))

test-tflite-runtime: $(CASES)/.ready $(if $(PYTHON311),$(RUNTIME)/.ready)
	$(EDGE_CASES) $(BIN)/python -m pytest -m 'not slow' tests/edge
ifeq ($(PYTHON311),)
	@echo "tflite-runtime 2.14 needs Python 3.11, which is not here: not tested" >&2
else
	$(EDGE_CASES) $(RUNTIME)/bin/python $(ON_DEVICE)
endif

$(ARM64)/python: .ci/arm64_root.sh .ci/unpack_debs.sh $(READY)
	rm -rf $(ARM64)
	PYTHON=$(BIN)/python .ci/arm64_root.sh $(ARM64)

# The script cannot start a second Python there.
test-arm64: $(CASES)/.ready $(RUNTIME)/.ready $(ARM64)/python
	$(EDGE_CASES) $(ARM64)/python $(ON_DEVICE) -k 'lite and not script'
	$(EDGE_CASES) MRCNN_TF_ARM64_PYTHON=$(abspath $(ARM64))/python MRCNN_TF_TFLITE_RUNTIME_PYTHON=$(abspath $(RUNTIME))/bin/python \
		$(BIN)/python -m pytest -m slow tests/edge/test_arm64.py

$(SWIFTSHADER)/libvk_swiftshader.so: .ci/swiftshader.sh .ci/unpack_debs.sh
	.ci/swiftshader.sh $(SWIFTSHADER)
	@touch $@

test-gpu-delegate: $(CASES)/.ready $(SWIFTSHADER)/libvk_swiftshader.so
	$(EDGE_CASES) LD_LIBRARY_PATH=$(abspath $(SWIFTSHADER)) VK_ICD_FILENAMES=$(abspath $(SWIFTSHADER))/vk_swiftshader_icd.json \
		$(BIN)/python -m pytest -m slow tests/edge/test_gpu_accelerator.py

# Needs Node.js, npm and Chromium.
WEB := $(VENV)-web

$(WEB)/.ready:
	npm install --silent --no-fund --no-audit --prefix $(@D) \
		@litertjs/core@2.5.3 @litertjs/wasm-utils@2.5.3 playwright-core@1.65.1
	@touch $@

test-web: $(READY) $(WEB)/.ready
	MRCNN_TF_WEB_MODULES=$(abspath $(WEB)) $(BIN)/python -m pytest -m slow tests/export/test_web.py

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

# torchvision, with the torch that it asks for.
PEERS := $(VENV)-torchvision

$(PEERS)/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet torchvision==0.29.1 pycocotools Pillow
	@touch $@

# Leave the machine alone meanwhile.
benchmark: $(READY) $(PEERS)/.ready $(GARDEN)/.ready
	$(BIN)/python benchmarks/compare.py --torchvision $(PEERS)/bin/python --model-garden $(GARDEN)/bin/python \
		$(if $(DETECTRON2),--detectron2 $(DETECTRON2))
	$(BIN)/python benchmarks/commands.py --torchvision $(PEERS)/bin/python --output benchmarks/commands.json
	$(BIN)/python benchmarks/profiles.py
	$(BIN)/python benchmarks/edge.py

clean:
	rm -rf $(VENV) $(GARDEN) $(TRACKERS) $(PEERS) $(RUNTIME) $(WEB) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
