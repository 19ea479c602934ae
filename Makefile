# make demo   from nothing to a learned optimizer, compared with tuned Adam (about 8 minutes)
# make test   format, lint, types, tests, examples in docstrings, notebooks and wheel
# make slow   the long tests
# make bench  how fast updates and meta-training are, each beside Adam, and whether the bars hold
#
# PYTHON chooses the interpreter, each with a virtual environment of its own:
#   make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

.PHONY: demo test lint unit wheel slow bench clean

demo: $(VENV)/.installed
	$(BIN)/python meta_train.py demo $(if $(wildcard runs/demo/config.json),--resume)

test: lint unit wheel

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

# Notebooks and doctests run beside the tests, and with the options of tests/conftest.py.
unit: $(VENV)/.installed-dev
	L2O_FAST=1 $(BIN)/python -m pytest -n 2 --dist loadfile --doctest-modules --nbmake --nbmake-kernel=python3 --ignore=l2o/tasks --ignore=tests/golden notebooks tests l2o tasks

# The wheel, installed elsewhere, runs outside the checkout.
wheel: $(VENV)/.installed-dev
	sh tests/smoke_wheel.sh $(BIN)/python

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[agents]'
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/update_cost.py
	$(BIN)/python benchmarks/throughput.py --estimators pes
	$(BIN)/python benchmarks/families.py --again
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/bars.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf .venv .venv-* build dist *.egg-info
