# `make quickstart` and `make test` are all a fresh machine needs; both create `.venv` on first use.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow check lint types clean

quickstart: $(STAMP) ## prune the built-in model to 50 %
	$(RUN) -m tyr.run

test: $(STAMP) ## the fast tests: offline, CPU, under three minutes
	$(RUN) -m pytest -n auto # each test computes on one thread, so every core takes its own

test-slow: $(STAMP) ## tests that take minutes
	$(RUN) -m pytest -m slow

check: lint types test

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(STAMP)
	$(RUN) -m mypy

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "tyr needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
