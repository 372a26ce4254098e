PYTHON ?= python3
export PYTHON
VENV_PYTHON := .venv/bin/python
UPSTREAM_PYTHON := .venv-upstream/bin/python

.PHONY: help setup demo docs lint format test test-fast test-upstream bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup:  ## Make .venv with everything: segmentation, detection, tests (PYTHON=... picks the interpreter)
	@tools/setup_env.sh full

demo:  ## Make .venv with what segmentation needs, unless there, and run the demo
	@tools/setup_env.sh demo
	$(VENV_PYTHON) demo/run.py

docs: setup  ## Build the documentation as a site in site/
	$(VENV_PYTHON) -m mkdocs build

lint: setup  ## Check style and types
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy apla_mm

format: setup  ## Sort imports, fix what ruff can fix, and format
	$(VENV_PYTHON) -m ruff check --fix
	$(VENV_PYTHON) -m ruff format

# Two workers with one thread each: torch's own threads would compete for the same cores.
test: lint  ## Lint, then run the tests (PYTEST_ARGS="-k name" picks some)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-fast: setup  ## Run all but the files that are marked slow, without linting: for working (3 minutes)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist worksteal -q -m 'not slow' $(PYTEST_ARGS)

test-upstream:  ## Run the tests beside the original OpenMMLab packages, in .venv-upstream
	@tools/setup_env.sh upstream
	OMP_NUM_THREADS=1 $(UPSTREAM_PYTHON) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

bench: setup  ## Measure a training step of ViT-B by every method (BENCH_ARGS="--device cuda" adds options)
	$(VENV_PYTHON) -m apla_mm benchmark vit_base_patch16_224 \
		--json work_dirs/benchmark.json $(BENCH_ARGS)

clean:  ## Remove the environments, builds and caches; data and training runs stay
	rm -rf .venv .venv-upstream build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
