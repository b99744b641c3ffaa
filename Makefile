# All set-up happens here, in a virtual environment inside the tree. Needed: python3 with venv and headers, a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
WHEELS := $(BUILD)/wheel

# What the wheel is made of: a change to any of these rebuilds it.
SOURCES := $(shell find src cmake pyproject.toml CMakeLists.txt README.md LICENSE -type f -not -name '*.pyc' 2>/dev/null)
C_SOURCES := $(shell find src/kernels -name '*.c' -o -name '*.h')
CYTHON_SOURCES := $(shell find src -name '*.pyx' -o -name '*.pxd')
PYTHON_SOURCES := $(wildcard src tests bench examples)

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types format selftest stress bench wheel sdist clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.installed  ## install lowbit and let it tell a story
	@$(BIN)/lowbit info
	@echo
	@echo 'Until a trained model is packaged, the embedded one has random weights, and what it writes is noise:'
	@echo '$$ lowbit generate "Once upon a time"'
	@$(BIN)/lowbit generate "Once upon a time"

# The tests run from their own folder, so that only the installed package can be imported.
test: check  ## lint, check types and run all tests against the installed wheel
	cd tests && $(abspath $(BIN))/python -m pytest $(PYTEST_ARGS) .

check: lint types  ## lint and check types

types: $(VENV)/.tools
	$(BIN)/mypy

lint: $(VENV)/.tools
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint --max-line-length 120 $(CYTHON_SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: $(VENV)/.tools  ## format Python and C
	$(BIN)/ruff check --fix-only $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

selftest:  ## compare every micro-kernel with plain C, under emulation too where it is installed
	$(PYTHON) tests/selftest/run.py $(BUILD)/selftest --emulate

stress:  ## run the block cache under ThreadSanitizer and AddressSanitizer, 10 minutes each
	$(PYTHON) tests/blockcache/stress.py $(BUILD)/stress --seconds 600

bench: $(VENV)/.tools  ## run the benchmarks, write table and plot to docs/
	$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[bench]"
	mkdir -p $(BUILD)/bench
	$(BIN)/python -m pytest bench --benchmark-json=$(BUILD)/bench/kernels.json
	$(BIN)/python bench/report.py --kernels $(BUILD)/bench/kernels.json

wheel: $(WHEELS)/.built  ## build the wheel into build/wheel

sdist: $(VENV)/.tools  ## build the source distribution into build/sdist
	$(BIN)/python -m build --sdist --outdir $(BUILD)/sdist .

clean:  ## remove everything that was built, and the virtual environment
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks tests/.hypothesis tests/.benchmarks

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(WHEELS)/.built: $(VENV)/.created $(SOURCES)
	@echo "building the wheel"
	rm -rf $(WHEELS)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEELS) --config-settings=build-dir=$(BUILD)/cmake .
	touch $@

# The version does not change between builds, so only --force-reinstall replaces the package; its
# dependencies are left alone.
$(VENV)/.installed: $(WHEELS)/.built
	$(BIN)/pip install --quiet $(WHEELS)/*.whl
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(WHEELS)/*.whl
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[test,dev]"
	touch $@
