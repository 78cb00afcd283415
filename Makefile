# `make` lists the targets. Everything goes into .venv and runs/; nothing is installed elsewhere.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
DATA := $(RUN)/data
MAXAGENT := $(BIN)/maxagent
TEST_WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 ...` overrides the search.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

##@ The two commands of a newcomer
.PHONY: train
train: $(DATA)/.trace.done ## Install, build the data, train the quickstart on an 8-device CPU mesh, evaluate, write its report
	$(CPU_MESH) $(MAXAGENT) train --config=configs/quickstart.py --workdir=$(RUN)

.PHONY: test
test: $(VENV)/.dev.done ## Install what the tests need and run them (all but the slow ones)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

##@ Checks
.PHONY: test-slow
test-slow: $(VENV)/.dev.done ## The slow tests: kill and resume, many processes, a fresh environment from the Dockerfile's steps
	$(BIN)/python -m pytest -m "slow or cluster"

.PHONY: test-cluster
test-cluster: $(VENV)/.dev.done ## Those of the slow tests that need several processes on this machine
	$(BIN)/python -m pytest -m cluster

.PHONY: test-faults
test-faults: $(VENV)/.dev.done ## 1,000 bit flips in files of every kind, harm to every file, full disks, kills in saves (five minutes)
	$(BIN)/python -m pytest -m "slow or not slow" tests/checkpoint

KILLS ?= 500
.PHONY: chaos
chaos: $(VENV)/.run.done ## 500 random kill -9 of whole runs of 1 and 4 processes (an hour); goes on where it stopped; KILLS=50 for fewer
	$(BIN)/python experiments/chaos.py --kills=$(KILLS) --workdir=runs/chaos

KERNEL_TESTS ?= tests/kernels -m "kernels or not kernels"
.PHONY: test-kernels
test-kernels: ## The TPU kernels: every shape interpreted, and compiled for v5e, v5p and v6e ahead of time (an hour)
	@[ -x .venv-kernels/bin/python ] || "$(PYTHON)" -m venv .venv-kernels
	@.venv-kernels/bin/python -m pip install -qq --requirement requirements/dev.lock libtpu==0.0.52 tokamax==0.0.12
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu .venv-kernels/bin/python -m pytest $(KERNEL_TESTS)

.PHONY: test-newest-jax
test-newest-jax: ## The smoke tests on the newest release of every dependency, where a Python 3.12+ is found
	@python="$$(bash .ci/find_newer_python)"; \
	if [ -z "$$python" ]; then echo "test-newest-jax: no Python 3.12 or later found, so nothing was run"; exit 0; fi; \
	[ -x .venv-newest/bin/python ] || "$$python" -m venv .venv-newest; \
	.venv-newest/bin/python -m pip install -qq --upgrade --upgrade-strategy eager --editable '.[test]' && \
	.venv-newest/bin/python -c 'import sys, importlib.metadata as m; \
	  print("newest:", "Python", sys.version.split()[0], *(f"{p} {m.version(p)}" for p in ("jax", "flax", "optax", "grain")))' && \
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.jax_cache/newest .venv-newest/bin/python -m pytest -m smoke -W default -n $(TEST_WORKERS) --dist loadfile

.PHONY: lint
lint: $(VENV)/.dev.done ## Ruff, mypy, the import contract, shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck launch/*.sh requirements/lock.sh .ci/run .ci/find_newer_python

.PHONY: bench
bench: $(VENV)/.run.done ## One fixed training step, timed: CPU and wall seconds, compile and import seconds, peak memory
	$(BIN)/python benchmarks/train_step.py --json

##@ Upkeep
.PHONY: install
install: $(VENV)/.run.done ## Make .venv and install maxagent into it, editable

.PHONY: lock
lock: ## Resolve setup.py anew into requirements/*.lock (exact versions, one set for Python 3.11 and later)
	[ -x .venv-lock/bin/uv ] || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -qq uv==0.13.9
	bash requirements/lock.sh .venv-lock/bin/uv

.PHONY: clean
clean: ## Remove build products and caches; runs/ and .venv stay
	rm -rf build dist .venv-newest .venv-kernels .venv-lock .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .jax_cache *.egg-info
	find maxagent kernels configs benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- installation: a stamp each, so a second call does nothing
$(VENV)/.run.done: requirements/run.lock setup.py
	@"$(or $(PYTHON),false)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: maxagent needs Python 3.11 or later; found: $$("$(or $(PYTHON),echo)" --version 2>&1 || true)" >&2; \
	  echo "make: name one that is installed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing into $(VENV) (once, a minute or two)"
	@start=$$(date +%s); \
	{ [ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV); } && \
	$(BIN)/python -m pip install -qq --requirement requirements/run.lock && \
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable . && \
	printf '{"phase": "install", "seconds": %d}\n' $$(($$(date +%s) - start)) > $(VENV)/install.json
	@touch $@

$(VENV)/.dev.done: $(VENV)/.run.done requirements/dev.lock
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install -qq --requirement requirements/dev.lock
	@touch $@

# ---------------------------------------------------------------- the quickstart's data: one visible command a step, none done twice
# The quickstart is a CPU run by design, on machines with an accelerator too. Eight devices share a few cores, so a collective may wait
# long for the last of them: XLA's default of 40 seconds would end the process.
CPU_MESH := JAX_PLATFORMS=cpu \
  XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"

# phase(name, command): shows and runs the command, and adds its wall seconds to the ledger that the report reads.
define phase
echo '$(subst ','\'',$(2))'; start=$$(date +%s); code=0; $(2) || code=$$?; \
printf '{"phase": "$(1)", "seconds": %d}\n' $$(($$(date +%s) - start)) >> $(RUN)/phases.jsonl; exit $$code
endef

$(RUN)/phases.jsonl: | $(VENV)/.run.done
	@mkdir -p $(DATA)
	@cp $(VENV)/install.json $@

# What a step left unfinished is removed before it is done again.
$(DATA)/.episodes.done: | $(RUN)/phases.jsonl
	@rm -rf $(DATA)/episodes
	@$(call phase,episodes,$(MAXAGENT) data generate --episodes 16000 --seed 0 --output $(DATA)/episodes)
	@touch $@

$(DATA)/.tokenizer.done: $(DATA)/.episodes.done
	@rm -f $(DATA)/tokenizer.model
	@$(call phase,tokenizer,$(MAXAGENT) data tokenizer --vocab-size 2048 --output $(DATA)/tokenizer.model --episodes $(DATA)/episodes)
	@touch $@

$(DATA)/.web.done: $(DATA)/.tokenizer.done
	@rm -rf $(DATA)/web
	@$(call phase,web,$(MAXAGENT) data build --kind=web --tokenizer $(DATA)/tokenizer.model --output $(DATA)/web)
	@touch $@

$(DATA)/.trace.done: $(DATA)/.web.done
	@rm -rf $(DATA)/trace
	@$(call phase,trace,$(MAXAGENT) data build --kind=trace --tokenizer $(DATA)/tokenizer.model --output $(DATA)/trace $(DATA)/episodes)
	@touch $@
