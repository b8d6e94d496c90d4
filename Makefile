# One command each. Everything runs in .venv, made on first use from constraints.txt.
#   make demo                      the whole way on synthetic patients
#   make demo DATA=notes.jsonl     the same on your records
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=
DATA ?=
EPSILON ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
MUTANTS_ARGS ?=
PACKAGES := dp_core controller service migrations deploy tests

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types imports format bench bench-engine bench-ledger test-ci test-slow test-faults test-gpu mutants clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## the virtual environment with everything in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which with PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "The venv module of $(PYTHON) is missing (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## a private fine-tuning job from upload to certificate [DATA=file] [EPSILON=8]
	@$(BIN)/rldp demo $(if $(DATA),--data '$(DATA)') $(if $(EPSILON),--epsilon '$(EPSILON)') $(DEMO_ARGS)

test: $(STAMP) ## every test that needs no more than minutes
	$(BIN)/python -m pytest

check: lint types imports test ## what has to pass before a change is handed in

lint: $(STAMP) ## style and format
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)

format: $(STAMP) ## rewrites the code in the agreed format
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## knowledge flows one way
	$(BIN)/lint-imports

bench: $(STAMP) ## ratios that must hold, measured here
	$(BIN)/python -m pytest -m bench -s

bench-engine: $(STAMP) ## a private step against a plain one, and Opacus' [BENCH_ARGS=--help]
	$(BIN)/python -m tests.benchmarks.engine --out build/bench $(BENCH_ARGS)

bench-ledger: $(STAMP) ## many clients on one limit, appends a second, a log of a million entries
	$(BIN)/python -m tests.benchmarks.ledger --out build/bench $(BENCH_ARGS)

test-ci: $(STAMP) ## what CI runs after the tests: the ledger's long histories and every crash point
	$(BIN)/python -m pytest -m ci -n auto

test-slow: $(STAMP) ## minutes of compute
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP) ## kills processes at named points
	$(BIN)/python -m pytest -m faults

test-gpu: $(STAMP) ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu

mutants: $(STAMP) ## faults that break privacy, put in one by one: a named test meets each [MUTANTS_ARGS=--list]
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

clean: ## removes what was built; .rldp and .demo hold ledgers and stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
