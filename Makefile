# Everything a day needs. A fresh clone needs only make and Python 3.11 or newer; all else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SBOM_OF ?= $(BIN)/python
SBOM ?= build/sbom.json
# Hundreds of processes import the same modules: what one has compiled is there for the others.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-parts test-cluster lint types fmt test-slow judges bench bench-lite bench-llm bench-audit bench-roles bench-gateways bench-discovery bench-trust pictures build sbom clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with squadron (editable) and the development tools

# The stamp, not the folder: a changed pyproject.toml installs again, and an install that broke off is not done.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON) found; give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "squadron needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into $(VENV): about a minute the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
	@echo "installed; next: . $(BIN)/activate, then squadron demo"

demo: $(STAMP) ## Run the demo: a squadron at work, no key needed
	$(BIN)/squadron demo

test: lint types test-parts test-cluster ## Lint, check types, and run all tests but the slow ones

test-parts: $(STAMP) ## Those of `make test` that need no Ray
	$(BIN)/python -m pytest -m 'not slow' tests/unit tests/contract tests/corpus -n 5 --dist worksteal

test-cluster: $(STAMP) ## Those of `make test` on a real Ray
	$(BIN)/python -m pytest -m 'not slow' tests/cluster tests/chaos -n 3 --dist loadfile --durations 20

lint: $(STAMP) ## Check style, format and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP) ## Check types (mypy, strict)
	$(BIN)/mypy

fmt: $(STAMP) ## Format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(STAMP) ## Run the long proofs: kills, floods, restarts
	$(BIN)/python -m pytest -m slow

# npm brings the kits; that of A2A is on GitHub alone: A2A_TCK names its folder (tests/contract/test_a2a_tck.py).
JUDGED := mcp_conformance mcp_server a2a a2a_tck a2a_javascript synadia_door synadia_agents synadia_signed any_language javascript every_door

judges: $(STAMP) ## Have kits and clients of others judge the doors, in five minutes
	$(BIN)/python -m pytest $(JUDGED:%=tests/contract/test_%.py)

bench: $(VENV)/.bench ## Measure speed and memory in 6 minutes, and write them into the docs
	$(BIN)/python -m benchmarks.run

bench-lite: $(VENV)/.bench ## Measure lite topics, up to a million of them, in 6 minutes
	$(BIN)/python -m benchmarks.lite_topics

bench-llm: $(VENV)/.bench ## Measure what the supervisor costs beside its model, in 2 minutes
	$(BIN)/python -m benchmarks.llm_runs

bench-audit: $(VENV)/.bench ## Measure what the audit trail costs, in 4 minutes
	$(BIN)/python -m benchmarks.audit_modes

bench-roles: $(STAMP) ## Measure what least privilege costs, in a minute
	$(BIN)/python -m benchmarks.roles

bench-gateways: $(STAMP) ## Measure what a call through a gateway costs, and what open ones hold, in ten minutes
	$(BIN)/python -m benchmarks.gateways
	$(BIN)/python -m benchmarks.gateway_synadia
	$(BIN)/python -m benchmarks.gateway_memory

bench-discovery: $(STAMP) ## Measure how well and how fast topics are found, in a minute
	$(BIN)/python -m benchmarks.discovery

bench-trust: $(STAMP) ## Measure what sealed payloads cost, in a minute
	$(BIN)/python -m benchmarks.sealing

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

.PHONY: bench-start
bench-start: $(STAMP) ## Measure how long a start takes beside bare Ray and Serve, in 3 minutes
	$(BIN)/python -m benchmarks.start

.PHONY: bench-flows
bench-flows: $(STAMP) ## Measure streams, durable events and new lite topics, in a minute
	$(BIN)/python -m benchmarks.flows

.PHONY: bench-scale
bench-scale: $(STAMP) ## Measure how agents scale, and what each costs, in 16 minutes, 10 of them a steady load
	$(BIN)/python -m benchmarks.scale

pictures: $(STAMP) ## Draw the pictures of docs/views.md anew
	$(BIN)/python docs/images/draw.py

build: $(STAMP) ## Build sdist and wheel into dist
	$(BIN)/python -m build

sbom: $(STAMP) ## Write build/sbom.json (CycloneDX): all that is installed where SBOM_OF=…/python runs, or .venv
	@mkdir -p $(dir $(SBOM))
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible --of JSON -o $(SBOM) $(SBOM_OF)

clean: ## Remove what was built and cached, .venv included; running servers stay (squadron down)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
