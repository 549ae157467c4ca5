# Two commands do everything: `make demo` and `make test`. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
DURATION ?= 600
SEED ?=

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: install
install: $(VENV)/.installed  ## create .venv with pgembed and its tools (does nothing when up to date)

$(VENV)/.installed: pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.PHONY: demo
demo: install  ## embed and search PostgreSQL's own catalog, on an embedded server
	$(BIN)/pgembed demo

.PHONY: test
test: lint  ## everything CI runs: lint, types, all tests
	$(BIN)/python -m pytest -rs $(PYTEST_ARGS)

.PHONY: server
server:  ## Debian's PostgreSQL with PL/Python and pgvector, for the tests that need it (as root)
	docker/install-postgres.sh

.PHONY: pglite
pglite:  ## PGlite with pg_textsearch, for the tests of BM25 (with npm)
	npm ci --prefix tests/harness/pglite --no-audit --no-fund --loglevel error

.PHONY: chaos
chaos: install  ## kill and stall workers, restart the server: DURATION=600 SEED=7
	$(BIN)/python -m tests.faults.chaos --duration $(DURATION) $(if $(SEED),--seed $(SEED))

.PHONY: mutations
mutations: install  ## take protections away, one by one: each time a test must fail
	$(BIN)/python -m tests.faults.mutations

.PHONY: lint
lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: lock
lock:  ## write requirements-dev.lock anew from pyproject.toml
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet --upgrade pip
	$(VENV)/lock/bin/pip install --quiet --group dev .
	(echo "# Written by 'make lock': the versions that development and CI use."; \
	 $(VENV)/lock/bin/pip freeze --exclude pgembed-vector) > requirements-dev.lock
	rm -rf $(VENV)/lock

.PHONY: clean
clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build
