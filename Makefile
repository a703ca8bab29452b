# Everything runs in a virtual environment of the project's own, .venv.
# `make help` lists the targets.

PYTHON     ?= python3
VENV       ?= .venv
# Where Detectron2 comes from: a git address, a local clone or a wheel.
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833
export DETECTRON2

PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup doctor demo test lint clean distclean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.11] [DETECTRON2=/path/to/clone-or-wheel]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.detectron2  ## make .venv: pinned requirements, then Detectron2 if it can be had
	@touch $(VENV)/.ready

$(VENV)/.requirements: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("make: $(PYTHON) is Python %d.%d; 3.10, 3.11 or 3.12 is needed: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

# Everything runs without Detectron2 too (exit code 1), so that only `make setup` tries again.
$(VENV)/.detectron2: $(VENV)/.requirements setup-detectron2.sh
	@sh setup-detectron2.sh $(PY) "$(DETECTRON2)" && touch $@ || test $$? = 1

$(VENV)/.ready: $(VENV)/.requirements setup-detectron2.sh
	@$(MAKE) --no-print-directory setup

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

doctor: $(VENV)/.ready  ## versions, compiled operators, CUDA, and what to do about what is missing
	@$(PY) -m cellseg.doctor

demo: $(VENV)/.ready  ## the whole way on a small synthetic data set: no GPU, no download of weights
	@$(PY) demo.py

lint: $(VENV)/.ready-dev  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

test: lint  ## ruff, mypy and every test
	@$(PY) -m pytest

clean:  ## remove what runs and tests leave behind, not the data or the runs
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
