# All set-up happens here, in a virtual environment inside the tree. Needed: python3 with venv and headers, a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
WHEELS := $(BUILD)/wheel
WHEELS_NATIVE := $(BUILD)/wheel-native
WHEELS_ALL := $(BUILD)/wheels
WHEELS_I686 := $(BUILD)/wheel-i686
# The machine of 1997: a gigabyte and half an hour to make, so it can be kept elsewhere.
RETRO := $(BUILD)/retro

# What the wheel is made of: a change to any of these rebuilds it.
SOURCES := $(shell find src cmake pyproject.toml CMakeLists.txt README.md LICENSE -type f -not -name '*.pyc' 2>/dev/null)
C_SOURCES := $(shell find src/kernels tests/model -name '*.c' -o -name '*.h')
CYTHON_SOURCES := $(shell find src -name '*.pyx' -o -name '*.pxd')
PYTHON_SOURCES := $(wildcard cmake src tests bench examples tools)

.DEFAULT_GOAL := help
.PHONY: help demo train-demo test test-ray test-ray-briefly check lint types format selftest sanitize stress soak bench docs wheel reproducible wheels sdist clang clean \
	wheel-i686 test-i386 test-i386-native retro retro-shell retro-disk pi-zero

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

# What is installed is used; where nothing is, a wheel for this machine alone is quicker to build.
demo: $(if $(wildcard $(VENV)/.installed),$(VENV)/.installed,$(VENV)/.native)  ## install lowbit and let it tell a story
	@$(BIN)/lowbit info
	@echo
	@echo '$$ lowbit generate "Once upon a time"'
	@$(BIN)/lowbit generate "Once upon a time"

train-demo: $(VENV)/.installed  ## train a tiny model in five minutes (installs PyTorch), and let it tell a story
	@$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[train]"
	@$(BIN)/python examples/train_demo.py $(BUILD)/train-demo

# The tests run from their own folder, so that only the installed package can be imported; a file of them in one process.
test: check  ## lint, check types and run all tests against the installed wheel
	cd tests && $(abspath $(BIN))/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS) .

test-ray: $(VENV)/.ray  ## run the tests on a cluster of Ray, whose nodes are processes here (installs Ray)
	@$(BIN)/pip install --quiet "ray[data]"
	cd tests && $(abspath $(BIN))/python -m pytest $(PYTEST_ARGS) cluster

test-ray-briefly: $(VENV)/.ray  ## the same, but for those that take long
	cd tests && $(abspath $(BIN))/python -m pytest -m "not long" $(PYTEST_ARGS) cluster

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

# Everything compiled, in a build and an environment of its own, watched while the tests run: see docs/safety.md. Python
# takes its memory from malloc, so that a buffer of Python's has an end that is watched, too.
SANITIZED := $(BUILD)/sanitize
SANITIZE_RUN = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
	LOWBIT_SANITIZED=1 ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1

sanitize: $(SANITIZED)/.installed  ## run the tests on kernels and parsers built with AddressSanitizer and UBSan
	$(PYTHON) tests/selftest/run.py $(SANITIZED)/selftest --sanitize
	cd tests && $(SANITIZE_RUN) $(abspath $(SANITIZED))/venv/bin/python -m pytest -p no:cacheprovider $(PYTEST_ARGS) \
		chat cli convert engine families formats fuzz kernels model quantize reference tokenizers train

RACES := $(BUILD)/races

stress: $(RACES)/.installed  ## run block cache, pool and engine under ThreadSanitizer or AddressSanitizer, 10 minutes each
	$(PYTHON) tests/stress/run.py engine $(RACES)/venv --seconds 600
	$(PYTHON) tests/stress/run.py blockcache $(BUILD)/stress --seconds 600 --threads 16
	$(PYTHON) tests/stress/run.py pool $(BUILD)/stress --seconds 600

soak: $(VENV)/.tools  ## a server with 1,000 clients that ask, dawdle, leave and send rubbish, 20 minutes
	$(BIN)/python tests/stress/server.py 1200 1000 1

bench: $(VENV)/.tools  ## run the benchmarks, write table and plot to docs/
	$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[bench]"
	mkdir -p $(BUILD)/bench
	$(BIN)/python -m pytest bench --benchmark-json=$(BUILD)/bench/kernels.json
	$(BIN)/python bench/report.py --kernels $(BUILD)/bench/kernels.json

wheel: $(WHEELS)/.built  ## build the wheel into build/wheel

reproducible: $(VENV)/.created  ## build the wheel of the last commit twice, in two folders, and compare the bytes
	rm -rf $(BUILD)/reproducible
	for folder in one another/and/longer; do \
		mkdir -p $(BUILD)/reproducible/$$folder && git archive HEAD | tar -x -C $(BUILD)/reproducible/$$folder && \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip wheel --quiet --no-deps --no-build-isolation \
			--wheel-dir $(BUILD)/reproducible/$$folder/wheel $(BUILD)/reproducible/$$folder || exit 1; \
	done
	cmp $(BUILD)/reproducible/one/wheel/*.whl $(BUILD)/reproducible/another/and/longer/wheel/*.whl
	@sha256sum $(BUILD)/reproducible/one/wheel/*.whl

wheels: $(WHEELS_ALL)/venv/.created  ## build the wheels of all platforms with zig into build/wheels, or those in NAMES
	$(WHEELS_ALL)/venv/bin/python tools/wheels/build.py $(WHEELS_ALL) $(NAMES)

wheel-i686: $(WHEELS_I686)/.built  ## cross-compile the wheel for 32-bit x86 (a Pentium II and later) into build/wheel-i686

test-i386: $(WHEELS_I686)/.built  ## run all tests with that wheel in a 32-bit Debian (root)
	RETRO=$(RETRO) tools/retro/test.sh $(WHEELS_I686)/*.whl $(PYTEST_ARGS)

test-i386-native:  ## the same with a wheel that is built there
	RETRO=$(RETRO) tools/retro/test.sh "" $(PYTEST_ARGS)

retro: $(WHEELS_I686)/.built $(VENV)/.installed  ## boot a Pentium II with 128 MB in emulation and let it tell a story (root)
	RETRO=$(RETRO) tools/retro/machine.sh run $(WHEELS_I686)/*.whl $(abspath $(BIN))/python

retro-shell: $(WHEELS_I686)/.built $(VENV)/.installed  ## the same machine with a person at its serial console (root)
	RETRO=$(RETRO) tools/retro/machine.sh shell $(WHEELS_I686)/*.whl $(abspath $(BIN))/python

retro-disk: $(WHEELS_I686)/.built $(VENV)/.installed  ## the same machine as one disk image that boots by itself (root)
	RETRO=$(RETRO) tools/retro/machine.sh disk $(WHEELS_I686)/*.whl $(abspath $(BIN))/python

pi-zero: $(VENV)/.installed  ## a conversation as a Raspberry Pi Zero has it, in emulation (Debian 12)
	RETRO=$(abspath $(BUILD))/pi-zero tools/pizero/run.sh $(abspath $(BIN))/python

docs: $(VENV)/.installed  ## build the site from docs/ and the docstrings into build/site
	@$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(abspath $(BUILD))/site

sdist: $(VENV)/.tools  ## build the source distribution into build/sdist
	$(BIN)/python -m build --sdist --outdir $(BUILD)/sdist .

# Errors are what newer compilers refuse.
clang: $(VENV)/.created  ## compile every C and Cython module with clang
	CC=clang CFLAGS="-Wall -Wextra -Wno-unused-parameter -Werror=implicit-function-declaration -Werror=incompatible-pointer-types -Werror=int-conversion \
		-Wno-error=incompatible-pointer-types-discards-qualifiers" \
		$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(BUILD)/clang/wheel \
		--config-settings=build-dir=$(BUILD)/clang/cmake .

clean:  ## remove everything that was built, and the virtual environment
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks tests/.hypothesis tests/.benchmarks

# With what builds wheels: a build of an environment of its own each time could not go on from what the last one compiled.
$(VENV)/.created:
	@tools/prerequisites.sh $(PYTHON) $(firstword $(CC))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(shell sed -n 's/^requires = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ,)
	$(BIN)/python -c 'from scikit_build_core.build import get_requires_for_build_wheel as more; print(*more(), sep="\n")' \
		>$(VENV)/more.txt
	$(BIN)/pip install --quiet -r $(VENV)/more.txt
	touch $@

$(WHEELS_NATIVE)/.built: export LOWBIT_ISA_BUILD = native
$(WHEELS)/.built $(WHEELS_NATIVE)/.built: $(VENV)/.created $(SOURCES)
	@echo "building the wheel"
	rm -rf $(@D)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(@D) \
		--config-settings=build-dir=$(BUILD)/cmake .
	touch $@

$(WHEELS_ALL)/venv/.created: tools/wheels/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r $<
	touch $@

$(WHEELS_I686)/.built: $(SOURCES) tools/retro/common.sh tools/retro/wheel.sh tools/retro/scan.py
	RETRO=$(RETRO) tools/retro/wheel.sh $(WHEELS_I686)
	touch $@

# The version does not change between builds, so only --force-reinstall replaces the package; its
# dependencies are left alone.
$(VENV)/.installed: $(WHEELS)/.built
$(VENV)/.native: $(WHEELS_NATIVE)/.built
$(VENV)/.installed $(VENV)/.native:
	$(BIN)/pip install --quiet $(<D)/*.whl
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(<D)/*.whl
	rm -f $(VENV)/.installed $(VENV)/.native
	touch $@

$(SANITIZED)/.installed: SANITIZERS = address,undefined
$(RACES)/.installed: SANITIZERS = thread
$(SANITIZED)/.installed $(RACES)/.installed: $(SOURCES)
	@echo "building with sanitizers: $(SANITIZERS)"
	$(PYTHON) -m venv $(@D)/venv
	rm -rf $(@D)/wheel
	$(@D)/venv/bin/pip wheel --quiet --no-deps --wheel-dir $(@D)/wheel \
		--config-settings=build-dir=$(@D)/cmake --config-settings=cmake.define.LOWBIT_SANITIZE=$(SANITIZERS) .
	$(@D)/venv/bin/pip install --quiet "$$(ls $(@D)/wheel/*.whl)[test]"
	$(@D)/venv/bin/pip install --quiet --no-deps --force-reinstall $(@D)/wheel/*.whl
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[test,serve,hub,dev]"
	for extra in test-server test-plugin bench; do \
		$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[$$extra]" || echo "skipped: tests that need the extra '$$extra'"; \
	done
	touch $@

$(VENV)/.ray: $(VENV)/.tools
	$(BIN)/pip install --quiet "$$(ls $(WHEELS)/*.whl)[ray]" httpx
	touch $@
