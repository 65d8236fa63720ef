# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Bring your own environment with `make VENV=path/to/environment`, another interpreter with `PYTHON=...`.

VENV ?= .venv
PYTHON ?= python3.11
RUN = $(VENV)/bin/python

.PHONY: setup demo test test-all

setup:
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) tools/install.py
	@$(RUN) -m regionclip.doctor

demo: setup
	$(RUN) tools/demo.py

test: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -m "not slow"

test-all: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest
