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

.PHONY: train test test-faults test-monai-label json dist test-matrix zoo clean

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

# The tests on every Python there is, with the versions of constraints.txt, and with the oldest that are declared.
PYTHONS ?= 3.10 3.11 3.12 3.13
test-matrix: $(READY)
	$(BIN)/python tools/oldest.py > $(VENV)/oldest.txt
	@for version in $(PYTHONS); do \
		sh tools/matrix.sh $$version constraints.txt newest || exit 1; \
	done
	sh tools/matrix.sh 3.10 $(VENV)/oldest.txt oldest

# What goes into MONAI's model zoo, in zoo/.
zoo: $(READY)
	$(BIN)/python tools/make_zoo.py zoo

# A wheel and an sdist, in dist/.
dist: $(READY)
	rm -rf build dist
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'

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
	rm -rf $(VENV) $(VENV)-monai-label .venv-matrix build dist zoo eval .coverage .pytest_cache .mypy_cache .ruff_cache *.egg-info
