# `make demo` and `make test` set up all they need in .venv (.venv-oldest for test-oldest), and nothing elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BASE := $(VENV)/.base

.PHONY: demo test test-oldest test-gpu check format generate benchmarks clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         show lorawatch at work on a recorded run (no torch needed)"
	@echo "make test         set up everything and run the tests"
	@echo "make test-oldest  the callback's tests on the oldest supported transformers"
	@echo "make test-gpu     what needs a CUDA card; keeps its figures in benchmarks/results/gpu.md"
	@echo "make check        linters, types, layers, and that generated files are fresh"
	@echo "make format       format the code"
	@echo "make generate     write the generated files anew"

$(BASE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --constraint constraints.txt
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(BASE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train,dev]" --constraint constraints.txt
	@touch $@

demo: $(BASE)
	$(BIN)/lorawatch demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[train]" pytest --constraint constraints-oldest.txt
	@touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest tests/integrations

test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests/gpu

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(STAMP)
	$(BIN)/python docs/generate.py

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/labelled_logs.py
	$(BIN)/python benchmarks/diagnosis.py
	$(BIN)/python benchmarks/advice.py
	$(BIN)/python benchmarks/false_alarms.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/step_ratio.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/stalls.py
	$(BIN)/python benchmarks/lora_doctor.py

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info
