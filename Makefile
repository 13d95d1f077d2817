# Everything a fresh machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
DEMO := runs/demo

.PHONY: help demo test check format lock clean perf

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mr1-bench needs Python 3.11 or later; run make PYTHON=python3.12, say")'
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q "$$(grep '^uv==' $(LOCK))"
	@$(BIN)/uv pip install -q --python $(BIN)/python -r $(LOCK) || $(BIN)/python -m pip install -q -r $(LOCK)
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/installed  ## evaluate the embedded tiny model on the embedded tasks
	@test -d $(DEMO)/tiny || $(BIN)/mr1-bench model tiny --out $(DEMO)/tiny
	@OMP_NUM_THREADS=1 $(BIN)/mr1-bench eval --model $(DEMO)/tiny --tasks mr1_synth --batch-size 100 --out $(DEMO)

test: check  ## run the checks, then all tests
	@$(BIN)/python -m pip check
	$(BIN)/pytest -n 2 --dist worksteal

check: $(VENV)/installed  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format .

perf: $(VENV)/installed  ## measure the graders side by side (needs MR1_REAL_DATA)
	$(BIN)/python perf/scoring.py

lock: $(VENV)/installed  ## resolve the lock anew from pyproject.toml
	$(BIN)/uv pip compile -q --universal --upgrade --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml -o $(LOCK)

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
