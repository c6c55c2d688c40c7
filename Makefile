# `make help` lists the targets. Each creates .venv first, once, and again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo gallery test test-all lint docs clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo "variables:  PYTHON=$(PYTHON) (makes the environment; 3.11 or newer)  WORKERS=$(WORKERS) (test processes)"

demo: $(INSTALLED)  ## chains, trees and a head on the bundled models at T = 0.6; print a table, write a report with figures
	$(BIN)/python -m experiments.run -m experiment=demo
	$(BIN)/python -m experiments.collect study=demo
	$(BIN)/python -m experiments.report study=demo

gallery: demo  ## the pages of docs/gallery
	cp multirun/demo/report/index.html docs/gallery/demo.html
	$(BIN)/specdec "def read_csv(" --drafter small_model,depth=4,branching=2 --temperature 0.6 --trace docs/gallery/trace.html

test: $(INSTALLED)  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: $(INSTALLED)  ## all tests and the notebooks; tests that are skipped are named, with what they need
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rs
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 docs/notebooks

lint: $(INSTALLED)  ## format, lint and types, checked and left as they are
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.docs  ## the documentation site, into site/; open site/index.html
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove the environment, caches and build folders; results in multirun/ stay
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "specdec needs Python 3.11 or newer and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[all]"
	@touch $@

.venv/.docs: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"
	@touch $@
