# All targets use the virtual environment .venv. `make help` lists them.

PYTHON     ?= python3
VENV       ?= .venv
# Source of Detectron2: a git address, a local clone or a wheel.
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833
export DETECTRON2

ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): a folder without spaces is expected, as make has no names with spaces)
endif

PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup doctor demo test lint clean distclean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.11] [DETECTRON2=/path/to/clone-or-wheel]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.detectron2  ## create .venv: pinned requirements, and Detectron2 if it can be built
	@touch $(VENV)/.ready

$(VENV)/.requirements: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 14) or sys.exit("make: $(PYTHON) is Python %d.%d; 3.10 to 3.14 is needed: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

# Detectron2 is optional (exit code 1); only `make setup` tries to build it again.
$(VENV)/.detectron2: $(VENV)/.requirements setup-detectron2.sh
	@sh setup-detectron2.sh $(PY) "$(DETECTRON2)" && touch $@ || test $$? = 1

$(VENV)/.ready: $(VENV)/.requirements setup-detectron2.sh
	@$(MAKE) --no-print-directory setup

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

doctor: $(VENV)/.ready  ## check versions, compiled operators and CUDA
	@$(PY) -m cellseg.doctor

demo: $(VENV)/.ready  ## all steps on a small synthetic data set, without GPU or download
	@$(PY) demo.py

lint: $(VENV)/.ready-dev  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

test: lint  ## ruff, mypy and all tests, in two processes
	@$(PY) -m pytest -n 2 --dist loadfile

clean:  ## remove caches and build files, not the data or the runs
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
