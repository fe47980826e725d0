# The commands of the house. Every target makes the environment it needs; PYTHON is any Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test test-all test-gpu lint bench clean

$(BIN)/transferkit: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

quickstart: $(BIN)/transferkit  ## fine-tune the bundled backbone on the bundled sample set, offline
	$(BIN)/transferkit finetune --data sample

test: $(BIN)/transferkit  ## the default tests: no network, no GPU, under 12 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(BIN)/transferkit
	$(BIN)/python -m pytest -m ""

test-gpu: $(BIN)/transferkit
	$(BIN)/python -m pytest -m gpu

lint: $(BIN)/transferkit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BIN)/transferkit
	$(BIN)/python tests/bench/startup.py
	$(BIN)/python tests/bench/training.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
