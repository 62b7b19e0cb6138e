# `make help` lists the verbs. Everything runs in .venv, which `make setup` builds.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
LAB := $(VENV)/bin/lab
# Extra arguments for the install of torch alone. Where the index would pull a CUDA build, name
# PyTorch's CPU index: make setup TORCH_ARGS="--index-url URL"
TORCH_ARGS ?=
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed

# Of `make trace`: which repeat of the run, and the file to write.
REPEAT ?= 0
OUT ?= trace.json

# Tests run in one process a core, at most four: each takes 1 GiB of memory and starts programs of
# its own. Timings are never taken this way.
PARALLEL = $(PY) -m pytest -q -n logical --maxprocesses 4 --dist worksteal -p no:benchmark \
  --ignore tests/benchmarks

.DEFAULT_GOAL := help
# How much of the paper to run: smoke (minutes), small (hours), full (the paper's own sizes).
SCALE ?= smoke
# RETRY=1 also runs again what crashed, gave wrong tokens or left a record that cannot be used.
RETRY ?=
PAPER = $(LAB) paper --scale $(SCALE) $(if $(filter-out 0,$(RETRY)),--retry)
EXHIBITS := table1 table2 table3 table4 table5 table6 table7 table8 \
  figure1 figure3 figure4 figure5 figure6 validation
.PHONY: help setup llamacpp image doctor calibrate demo trace test test-fast test-docker lint types \
  check bench bench-all paper report render clean $(EXHIBITS)

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## build .venv with everything that is needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
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
	@$(LAB) image

doctor: setup  ## say what this machine can emulate, and what is missing
	@$(LAB) doctor

calibrate: setup  ## measure this machine for the simulator, into weights/ (two minutes)
	@$(LAB) calibrate

demo: setup  ## make a small checkpoint, run TPI-LLM on 4 local devices beside Transformers
	@$(LAB) demo checkpoints/demo-50m
	@$(PY) run.py model=folder model.path=checkpoints/demo-50m devices=4 \
	  'systems=[tpi,transformers]' 'workload.prompt=Small devices together'

trace: setup  ## a traced run's spans for ui.perfetto.dev: make trace RUN=results/runs/ID [OUT=FILE]
	@test -n "$(RUN)" || { echo "say which run: make trace RUN=results/runs/ID, of one with trace=true"; exit 2; }
	@$(LAB) trace "$(RUN)" --repeat "$(REPEAT)" --out "$(OUT)"

test: setup  ## every test that needs no network, root or Docker (minutes)
	@$(PARALLEL) -m "not docker and not bench"

test-fast: setup  ## only the tests that take less than a second each
	@$(PARALLEL)

test-docker: image  ## tests that need root, Docker, cgroups, TAP devices
	@$(PY) -m pytest -q -m "docker and not bench" --timeout 300

lint: setup  ## ruff: rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup  ## mypy --strict
	@$(PY) -m mypy

check: lint types test  ## all of CI

# BASE names another commit; ACCEPT a row that may get worse, since it is meant to: ACCEPT="NAME".
bench: setup  ## compare counters and timings with the base commit (about 5 minutes)
	@$(PY) -m pytest tests/benchmarks/test_bench_probes.py -q -m bench --benchmark-autosave
	@$(LAB) regression --out .benchmarks/regression.md \
	  $(if $(BASE),--base "$(BASE)") $(if $(ACCEPT),--accept "$(ACCEPT)")

bench-all: setup  ## every timing, each a ratio taken in one run (long)
	@$(PY) -m pytest tests/benchmarks -q -m bench -s --timeout 1800

paper: setup  ## run and render the paper's tables and figures; one alone: make table1 SCALE=small
	@$(PAPER)

$(EXHIBITS): setup
	@$(PAPER) --only $@

report: setup  ## claims, tables and figures as one HTML file: make report SCALE=smoke
	@$(LAB) report results/paper-runs/$(SCALE) \
	  --out results/paper-runs/$(SCALE)/report.html

render: setup  ## draw the paper's tables and figures again from what was run
	@$(LAB) render results/paper-runs/$(SCALE)

clean:  ## remove caches; never records, timings, weights or the environment
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
