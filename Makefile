# Every target sets up .venv by itself when it is missing or out of date.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: demo test check proto bench train lock results clean help

PYTHON := .venv/bin/python
READY := .venv/.ready
TASKS := whack intercept pick_place conveyor

# Render without a display where there is none; let idle OpenMP threads sleep.
ifeq ($(shell uname -s)$(DISPLAY),Linux)
export MUJOCO_GL ?= egl
endif
export OMP_WAIT_POLICY ?= passive

demo: $(READY)  ## a simulated arm follows a served policy; writes a video and a plot
	$(PYTHON) scripts/demo.py

test: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## the tests (ARGS="-k name" picks some)
	$(PYTHON) -m pytest $(ARGS)

check: $(READY)  ## lint, format, types, import direction, generated files
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)
	$(PYTHON) scripts/check_imports.py
	$(PYTHON) scripts/generate_stubs.py --check
	$(PYTHON) scripts/make_results.py --check

proto: $(READY)  ## generate the gRPC stubs from proto/onset/v1/policy.proto
	$(PYTHON) scripts/generate_stubs.py

bench: $(READY)  ## the benchmarks, and a short evaluation of each task; writes to out/bench
	@mkdir -p out/bench
	@set -e; for file in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
	  quick=; if [ $$file = benchmarks/faults.py ]; then quick=--quick; fi; \
	  echo $(PYTHON) $$file $$quick; $(PYTHON) $$file $$quick; done
	@set -e; for task in $(TASKS); do \
	  echo $(PYTHON) scripts/evaluate.py --task $$task; \
	  $(PYTHON) scripts/evaluate.py --task $$task --episodes 10 --json out/bench/$$task.json; done

train: $(READY)  ## train the bundled policies (hours on a CPU; resumes where it stopped)
	@set -e; for task in $(TASKS); do \
	  echo $(PYTHON) scripts/train.py --task $$task; \
	  $(PYTHON) scripts/train.py --task $$task; done

lock:  ## renew requirements.lock after a change of pyproject.toml (UPGRADE=1: newest versions)
	scripts/bootstrap --uv-only
	.venv/bin/uv pip compile pyproject.toml --all-extras --group metaworld --universal --generate-hashes \
	  --python-version 3.12 --no-annotate \
	  --custom-compile-command "make lock" \
	  $(if $(UPGRADE),--upgrade) --quiet --output-file requirements.lock

results: $(READY)  ## write docs/results.md from docs/results/*.json
	$(PYTHON) scripts/make_results.py

clean:  ## remove caches and outputs; .venv and runs/ stay
	rm -rf out dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements.lock scripts/bootstrap
	scripts/bootstrap
