# Two commands, each doing its own set-up on a machine that has python3 (3.10 or newer) and make:
#   make train    learn on a phantom study and segment patients it has not seen
#   make test     lint, types, tests
# And, for damaged files, bad inputs and kills in great numbers (many minutes; a part of them is in make test):
#   make test-faults
# And, for MONAI Label (a second environment, about 2 GB):
#   make test-monai-label

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: train test test-faults test-monai-label json clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

train: $(READY)
	$(BIN)/python -m monai.bundle run training --config_file configs/train.yaml

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(WORKERS) --cov --cov-fail-under=95

test-faults: $(READY)
	ALPNET_FAULTS=$${ALPNET_FAULTS:-full} OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
		$(BIN)/python -m pytest tests/faults -m faults --capture=no

# The JSON twins of the configs that MONAI reads by a fixed name.
json: $(READY)
	$(BIN)/python tools/json_twins.py

test-monai-label:
	bash tests/monai_label/environment.sh $(VENV)-monai-label
	$(VENV)-monai-label/bin/python tests/monai_label/check.py

clean:
	rm -rf $(VENV) $(VENV)-monai-label eval .coverage .pytest_cache .mypy_cache .ruff_cache *.egg-info
