# Thin on purpose: each target is a command or two that also work by hand.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON = $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# two processes, a file's tests in one of them: each process has its own four ranks, which stay for all its tests;
# files in the order of tests/conftest.py, which begins with the longest
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PICTURE := outputs/red-circle.png

.PHONY: quickstart install check test test-full

quickstart: $(STAMP)  ## makes one picture with the built-in model
	$(BIN)/difftool generate builtin:shapes-image -p "a red circle" --seed 7 -o $(PICTURE) \
		--set output.on_collision=overwrite
	@echo "the picture is $(abspath $(PICTURE))"

install: $(STAMP)  ## the package, editable, with what its development needs

$(STAMP): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error difftool needs Python 3.11, 3.12 or 3.13 on the PATH))
	@echo "installs into $(VENV): some minutes, most of them for torch"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch  # alone and first, so that no other package's range chooses its build
	@$(PIP) --editable '.[dev]'
	@touch $@

check: $(STAMP)  ## style, types, import direction
	scripts/check

test: $(STAMP)  ## the fast tests
	$(PYTEST) -m "not slow"

test-full: $(STAMP)  ## all tests
	$(PYTEST)
