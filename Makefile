# Thin: each verb is one command. A fresh machine needs Python >= 3.11, git and make.
#   make demo                      install, then train and use a small model on generated pictures
#   make test                      install, then run the tests; SLOW=1 adds the slow ones
#   make check                     lint, types, import contracts, rules, the site, known vulnerabilities
#   make docs                      write the site to build/site; links and names are checked
#   make bench                     measure on this machine, then rebuild the tables from the results
# PYTHON=python3.12 picks the interpreter; PYTEST_ARGS="tests/ops -x" goes to pytest.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
SLOW ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The variable leaves out an advertisement.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
MARKS := $(if $(SLOW),-m "",)

.PHONY: help demo test check lint rules docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/muntin.stamp
	$(BIN)/muntin demo

# Bytecode is kept whatever the environment says: each worker, and each interpreter that a test
# starts, would compile the package and rewrite the tests anew. Files are taken in their order, since
# those with few tests, which would come last, are often the longest.
test: $(VENV)/dev.stamp
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(MARKS) $(PYTEST_ARGS)

check: lint rules docs

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.ci/audit $(VENV)

rules: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q tests/rules

docs: $(VENV)/dev.stamp
	$(MKDOCS)

bench: $(VENV)/dev.stamp
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# A stamp is made last, so an interrupted install is taken up again by the next call.
$(VENV)/torch.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "muntin needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1 || true) from '$(PYTHON)'." \
	    "Name another one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making $(VENV) and installing torch and torchvision (large, only once) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	@touch $@

$(VENV)/muntin.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "Installing muntin ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "Installing muntin and what its tests need ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/muntin.stamp
