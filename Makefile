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
BREAKING ?=
SEEDS ?=
HISTORIES_ARGS ?=
ALARMS_ARGS ?=
PACKAGES := dp_core controller service migrations deploy tests

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types imports format bench bench-engine bench-ledger bench-verifier bench-utility bench-audit test-ci test-openai-oldest soak test-slow test-histories test-alarms test-faults test-gpu screenshots mutants openapi bench-service bench-dashboard sbom licences audit reproducible bench-year clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

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

bench-verifier: $(STAMP) ## the standalone verifier on a log of a million entries
	$(BIN)/python -m tests.benchmarks.verifier --out build/bench $(BENCH_ARGS)

bench-service: $(STAMP) ## reads, creates and lists a second of real API processes on PostgreSQL
	$(BIN)/python -m tests.benchmarks.service --out build/bench $(BENCH_ARGS)

bench-dashboard: $(STAMP) ## first view among 10,000 jobs, 200 open streams, a curve of 5,000 points
	$(BIN)/python -m tests.benchmarks.dashboard --out build/bench $(BENCH_ARGS)

bench-year: $(STAMP) ## a share of a year of many hospitals against the real ledger [BENCH_ARGS=--help]
	$(BIN)/python -m tests.benchmarks.year --out build/bench $(BENCH_ARGS)

bench-utility: $(STAMP) ## every method at equal privacy: perplexities with intervals [BENCH_ARGS='--suite cpu']
	$(BIN)/rldp bench utility --out build/bench/utility $(BENCH_ARGS)

bench-audit: $(STAMP) ## attacks on every kind of training, beside what epsilon allows [BENCH_ARGS='--suite small']
	$(BIN)/rldp bench audit --out build/bench/audit $(BENCH_ARGS)

test-ci: $(STAMP) ## what CI runs after the tests: the ledger's long histories and every crash point
	$(BIN)/python -m pytest -m ci -n auto

# What that client needs beside itself and newer ones do not; nothing of it enters the environment.
OPENAI_OLDEST := 1.101.0
OPENAI_FOLDER := build/openai-$(OPENAI_OLDEST)
OPENAI_TESTS := tests/contract/test_client_version.py tests/integration/test_openai_client.py \
  tests/integration/test_openai_real_job.py tests/service/datasets/test_openai_client.py \
  tests/service/chat/test_chat.py tests/service/test_rate_limits.py tests/service/webhooks/test_deliveries.py

$(OPENAI_FOLDER)/.installed: $(STAMP)
	@rm -rf $(OPENAI_FOLDER)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps \
	  --target $(OPENAI_FOLDER) openai==$(OPENAI_OLDEST) distro==1.9.0 jiter==0.19.0 tqdm==4.70.1
	@touch $@

test-openai-oldest: $(OPENAI_FOLDER)/.installed ## the contract under the oldest supported `openai` client
	RLDP_TEST_OPENAI=$(OPENAI_OLDEST) PYTHONPATH=$(OPENAI_FOLDER) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n auto --dist loadfile $(OPENAI_TESTS)

soak: $(STAMP) ## two hours of mixed load on the production layout: leaks, losses [BENCH_ARGS='--minutes 10']
	$(BIN)/python -m tests.soak.run --out build/bench $(BENCH_ARGS)

test-slow: $(STAMP) ## minutes of compute
	$(BIN)/python -m pytest -m slow

test-histories: $(STAMP) ## the ledger's long targets in pieces, goes on where it stopped [SEEDS=500:1500] [HISTORIES_ARGS=--help]
	nice $(BIN)/python -m tests.service.ledger.long_histories $(if $(SEEDS),--seeds $(SEEDS)) $(HISTORIES_ARGS)

test-alarms: $(STAMP) ## 1,000 correct jobs through the audit's gate, goes on where it stopped [ALARMS_ARGS=--help]
	nice env OMP_NUM_THREADS=1 $(BIN)/python -m tests.dp_core.audit.long_runs $(ALARMS_ARGS)

test-faults: $(STAMP) ## kills processes at named points
	$(BIN)/python -m pytest -m faults

test-gpu: $(STAMP) ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu

screenshots: $(STAMP) ## the README's pictures of the dashboard, from the test scene
	$(BIN)/python -m tests.browser.pictures

mutants: $(STAMP) ## faults that break privacy, put in one by one: a named test meets each [MUTANTS_ARGS=--list]
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

openapi: $(STAMP) ## accepts a grown API: rewrites tests/contract/openapi.json [BREAKING=1]
	$(BIN)/python -m tests.contract.openapi_diff --write $(if $(BREAKING),--breaking)

# Tools of the supply chain live apart, so that they are not part of what they list.
SUPPLY := build/supply
$(SUPPLY)/.installed: deploy/supply.txt
	@$(PYTHON) -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r deploy/supply.txt
	@touch $@

sbom: $(STAMP) $(SUPPLY)/.installed ## build/sbom.json: what is installed, in CycloneDX
	$(SUPPLY)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o build/sbom.json

licences: $(STAMP) $(SUPPLY)/.installed ## build/licences.md: the licence of each package
	$(SUPPLY)/bin/pip-licenses --python $(BIN)/python --format markdown --with-urls \
	  --from mixed --output-file build/licences.md

audit: $(SUPPLY)/.installed ## known vulnerabilities of the pinned versions; needs network
	$(SUPPLY)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

reproducible: $(SUPPLY)/.installed ## builds the wheel twice: the digests are equal
	@for n in 1 2; do rm -rf build/wheel-$$n; \
	  SOURCE_DATE_EPOCH=315532800 PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
	  $(SUPPLY)/bin/python -m build --wheel --outdir build/wheel-$$n . >/dev/null || exit 1; done
	@sha256sum build/wheel-1/*.whl build/wheel-2/*.whl
	@cmp build/wheel-1/*.whl build/wheel-2/*.whl && echo "reproducible"

clean: ## removes what was built; .rldp and .demo hold ledgers and stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
