# `make help` lists the verbs. Everything runs in .venv, which `make setup` builds.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Extra arguments for the install of torch alone. Where the index would pull a CUDA build, name
# PyTorch's CPU index: make setup TORCH_ARGS="--index-url URL"
TORCH_ARGS ?=
TORCH ?= torch==2.13.0
# Size of the paper's runs: smoke, small or full.
SCALE ?= smoke
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup llamacpp image doctor demo test test-fast test-docker lint types check bench report clean

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## build .venv with everything that is needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; about a minute)"
	@$(PY) -m pip install -q --disable-pip-version-check $(TORCH_ARGS) $(TORCH) -c constraints.txt
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

llamacpp: $(VENV)/.llamacpp  ## add llama.cpp to .venv (compiled here, about five minutes)

$(VENV)/.llamacpp: $(STAMP)
	@echo "compiling llama.cpp into $(VENV) (once)"
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[llamacpp]' -c constraints.txt
	@touch $@

image: setup  ## build the image of emulated devices if its inputs changed (minutes; Docker)
	@$(PY) -m testbed.image

doctor: setup  ## say what this machine can emulate, and what is missing
	@$(PY) -m testbed.doctor

demo: setup  ## make a small checkpoint, run TPI-LLM on 4 local devices beside Transformers
	@$(PY) -m harness.demo checkpoints/demo-50m
	@$(PY) run.py model=folder model.path=checkpoints/demo-50m devices=4 \
	  'systems=[tpi,transformers]' 'workload.prompt=Small devices together'

test: setup  ## every test that needs no network, root or Docker (minutes)
	@$(PY) -m pytest -q -m "not docker and not bench"

test-fast: setup  ## only the tests that take less than a second each
	@$(PY) -m pytest -q

test-docker: image  ## tests that need root, Docker, cgroups, TAP devices
	@$(PY) -m pytest -q -m "docker and not bench" --timeout 300

lint: setup  ## ruff: rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup  ## mypy --strict
	@$(PY) -m mypy

check: lint types test  ## all of CI

bench: setup  ## timings, each a ratio taken in one run (minutes)
	@$(PY) -m pytest tests/benchmarks -q -m bench -s --timeout 1800

report: setup  ## claims, tables and figures as one HTML file: make report SCALE=smoke
	@$(PY) -m results.report results/paper-runs/$(SCALE) \
	  --out results/paper-runs/$(SCALE)/report.html

clean:  ## remove caches; never records, weights or the environment
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks build *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
