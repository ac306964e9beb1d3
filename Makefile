# make demo   restore a held-out digit (makes its own virtual environment first)
# make test   lint, types, import layers, tests of every formula, short pages and examples, the site in a browser
# make test-long   long pages, more keys, larger clouds and further combinations: hours
# make test-lowest   core tests with the oldest versions that pyproject.toml allows, in an environment of its own
#
# They need only python3 (3.11 or newer; 3.11 for the oldest versions) and make. PYTHON=... and
# LOWEST_PYTHON=... pick other interpreters, VENV=... and LOWEST_VENV=... other places, PYTEST_ARGS=... adds
# options, such as '-x'.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BIN := $(VENV)/bin

LOWEST_PYTHON ?= python3.11
LOWEST_VENV ?= .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
# What meets other libraries, a test file or two for each.
CORE_TESTS := $(patsubst %,tests/test_%.py,arviz density energies fit handlers io moves nested replica smc \
	teachers_files train)

# Quick and slow tests have processes of their own. A file of quick tests stays in one worker, where its tests
# find each other's programs; slow tests, pages and examples are shared out one by one. Two workers share the machine: one compute thread each, or they fight over the cores. Compiling is
# most of their time, and many programs are the same: they are kept on disk.
ONE_THREAD := --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1
TEST_ENV := XLA_FLAGS="$(ONE_THREAD)" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 JAX_PLATFORMS=cpu MPLBACKEND=agg \
	JAX_COMPILATION_CACHE_DIR="$(abspath $(VENV))/jax-cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# Tests spend their time on compiling programs that run once, so the compiler is told to hurry: few
# passes, loops without the detour over MLIR, and one LLVM module a program (several cost each a start).
# XLA reads no flag after one without dashes, so these come first. It dies of a flag that it does not know, and
# the flags change with its versions, so each is tried. $(1) is the environment's folder of programs.
HURRY_FLAGS := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
known = $(foreach flag,$(HURRY_FLAGS),$(shell { JAX_PLATFORMS=cpu XLA_FLAGS=$(flag) $(1)/python -c \
	'import jax; jax.devices()' && echo $(flag); } 2>/dev/null))
hurry = JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$(call known,$(1)) $(ONE_THREAD)"

.PHONY: demo test test-long test-lowest lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-demo
	$(BIN)/python examples/restore_digit.py

test: lint $(VENV)/.stamp-test
	$(TEST_ENV) $(call hurry,$(BIN)) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not long" $(PYTEST_ARGS)
	$(TEST_ENV) $(call hurry,$(BIN)) $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_ARGS)

test-long: $(VENV)/.stamp-test
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m long $(PYTEST_ARGS)

# The cache is that of this JAX. Old libraries call what newer ones deprecate.
test-lowest: $(LOWEST_VENV)/.stamp-lowest
	$(TEST_ENV) $(call hurry,$(LOWEST_BIN)) JAX_COMPILATION_CACHE_DIR="$(abspath $(LOWEST_VENV))/jax-cache" \
		$(LOWEST_BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not long" \
		-W ignore::DeprecationWarning $(PYTEST_ARGS) $(CORE_TESTS)

lint: $(VENV)/.stamp-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python scripts/api_pages.py --check

docs: $(VENV)/.stamp-test
	$(BIN)/python -m mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"numpyro-diffusion needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	@touch $@

$(VENV)/.stamp-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[examples,test,docs]'
	@touch $@ $(VENV)/.stamp-demo

$(LOWEST_BIN)/python:
	@$(LOWEST_PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v[:2] != (3, 11) and f"The oldest versions are those of Python 3.11; {sys.executable} is {v[0]}.{v[1]}. Try: make LOWEST_PYTHON=python3.11 test-lowest")'
	$(LOWEST_PYTHON) -m venv $(LOWEST_VENV)

$(LOWEST_VENV)/.stamp-lowest: pyproject.toml tests/lowest.txt | $(LOWEST_BIN)/python
	$(LOWEST_BIN)/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[examples,test]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST_VENV) site .cache
