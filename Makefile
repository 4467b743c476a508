# Every target sets up its own virtual environment when there is none. `make` lists the targets.
# Settings: PYTHON (makes the environment), VENV (where it is), WORKERS (test processes), ARGS (more for pytest
# or the fuzzer), MINUTES (of fuzzing).
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 10
WORKERS ?= auto
ARGS ?=

# Two OpenMP threads on two busy cores can be 50 times slower than one.
export OMP_NUM_THREADS = 1

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
NATIVE = ls $(VENV)/lib/*/site-packages/bitcore/_native/* >/dev/null 2>&1 || \
	echo "No working C compiler: BitLab is installed without its native kernels. Install one, then: make clean"
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS)
C_FILES = $(shell find src tests mcu -name '*.[ch]')
# Python is read from src/ as it is; only these need a new installation (directories too: a C file may come or go).
INSTALLED := pyproject.toml constraints.txt CMakeLists.txt $(shell find src/bitcore/kernels/csrc)

.PHONY: help quickstart test test-slow fuzz check format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

quickstart: $(VENV)/runtime ## train, export to C, verify: the whole path, on real digits, in a minute
	$(BIN)/bitlab quickstart

test: $(VENV)/dev ## run the tests
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/dev ## run the heavy sweeps
	$(PYTEST) -m slow $(ARGS)

fuzz: $(VENV)/dev ## mutate files for MINUTES: whatever reads them accepts or refuses, never more
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(MINUTES) $(ARGS)

check: $(VENV)/dev ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/dev ## format Python and C, fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests mcu -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BitLab needs Python 3.11+: make PYTHON=..." or 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/runtime: $(INSTALLED) | $(BIN)/python
	$(INSTALL) .
	@$(NATIVE)
	@touch $@

$(VENV)/dev: $(INSTALLED) | $(BIN)/python
	$(INSTALL) '.[dev]'
	@$(NATIVE)
	@touch $@ $(VENV)/runtime
