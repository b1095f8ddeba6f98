# Two commands do everything on a fresh machine with Python 3.10+ and a package index:
#   make demo   the whole journey on embedded data      make test   the test suite
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow lint cards conformance clean

demo: $(INSTALLED)
	$(BIN)/timm-linop demo $(if $(HUB),--hub)

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 20 -m "not slow"

# Runs of several processes, and runs that are killed again and again; one at a time, as moments matter.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest tests -m slow --durations 10

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m hub_cards.make --check

# The cards in hub_cards/, from the template and the records of their runs.
cards: $(INSTALLED)
	$(BIN)/python -m hub_cards.make

# timm's own model tests on slim and expanded twins, then what they leave out.
conformance: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[timm-suite]'
	$(BIN)/python -m tests.timm_suite -q
	$(BIN)/python -m pytest -q tests/test_timm_contract.py tests/test_timm_forms.py tests/test_timm_tools.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "timm_linop needs Python 3.10 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv
