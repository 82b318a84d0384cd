# Everything runs in .venv, which the first target that needs it builds from Python 3.11 or 3.12 alone.
#   make test PYTHON=/path/to/python3.12     another interpreter (used only to create .venv; gpu-bench runs it directly)
#   make demo ARGS="..."                     arguments for the command behind a target

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench gpu-bench docs clean

ARGS ?=
JOBS ?= 2
BIN := .venv/bin

# A stamp is named after what it was made from, not dated: a fresh checkout does not rebuild a complete .venv, and a
# moved one does. Where every pinned package is already there, installing needs no network.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d ' ' -f 1)
TEST_STAMP := .venv/.nestling-test-$(KEY)
DEV_STAMP := .venv/.nestling-dev-$(KEY)

# Exits 0 on a Python that can build the environment. Run, not looked up: a shim can be on the PATH and yet fail.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint constraints.txt

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(TEST_STAMP)  ## run the demonstration
	$(BIN)/nestling demo $(ARGS)

test: $(TEST_STAMP)  ## run the tests, slow ones excepted, on JOBS=2 processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-slow: $(TEST_STAMP)  ## run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m slow $(ARGS)

check: $(DEV_STAMP)  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(TEST_STAMP)  ## measure throughput on the CPU
	$(BIN)/python -m benchmarks.throughput $(ARGS)

gpu-bench:  ## measure throughput on a GPU, with PYTHON's own torch and without .venv
	PYTHONPATH=src $(or $(PYTHON),python3) -m benchmarks.throughput --device cuda $(ARGS)

docs: $(DEV_STAMP)  ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

clean:  ## remove what was built; .venv and runs/ stay
	rm -rf docs/_build dist .pytest_cache .ruff_cache .hypothesis
	find src tests recipes benchmarks docs -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(TEST_STAMP):
	@if ! $(BIN)/python -c "import pip" >/dev/null 2>&1; then \
	  for candidate in $(or $(PYTHON),python3.12 python3.11 python3 python); do \
	    if "$$candidate" -c "$(SUITABLE)" >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11 or 3.12 with venv and ensurepip among: $(or $(PYTHON),python3.12 python3.11 python3 python)." >&2; \
	    echo "Install one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "Creating .venv with $$("$$found" --version) ($$found)."; \
	  "$$found" -m venv .venv || { echo "If a broken .venv is in the way: rm -rf .venv, and run make again." >&2; exit 1; }; \
	fi
	@$(BIN)/python -c "$(SUITABLE)" 2>/dev/null || \
	  { echo "The python in .venv is not a working 3.11 or 3.12: rm -rf .venv, and run make again." >&2; exit 1; }
	@echo "Installing torch, then nestling and its test tools, into .venv (once; a minute or two)."
	@# torch first and alone: a pinned version is the CPU build where a range would pull gigabytes
	@$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(INSTALL) hatchling
	@$(INSTALL) --no-build-isolation --editable ".[test,report]"
	@rm -f .venv/.nestling-*
	@touch $@

$(DEV_STAMP): $(TEST_STAMP)
	@echo "Installing the development tools into .venv (once)."
	@$(INSTALL) --no-build-isolation --editable ".[dev]"
	@touch $@
