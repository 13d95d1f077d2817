# Everything a fresh machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
DEMO := runs/demo

.PHONY: help demo test check format lock clean perf tiny-model

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
	@OMP_NUM_THREADS=1 $(BIN)/mr1-bench eval --model tiny --tasks mr1_synth --batch-size 100 --out $(DEMO)

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

perf: $(VENV)/installed  ## measure beside the peers: the trainer and TRL, the grader and math-verify (needs MR1_REAL_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python perf/trainer.py
	$(BIN)/python perf/scoring.py

tiny-model: $(VENV)/installed  ## make the embedded model again from nothing (about 9 minutes of CPU time)
	OMP_NUM_THREADS=1 $(BIN)/mr1-bench model tiny --rebuild runs/tiny-model
	cp runs/tiny-model/run/last/*.json runs/tiny-model/run/last/*.jinja runs/tiny-model/run/last/*.safetensors trainers/tiny_model/
	rm trainers/tiny_model/run.json

lock: $(VENV)/installed  ## resolve the lock anew from pyproject.toml
	$(BIN)/uv pip compile -q --universal --upgrade --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml -o $(LOCK)

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
