# `make` explains itself. Every target sets up what it needs in .venv; nothing is installed outside of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help
help: ## This help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v < (3, 11) or v > (3, 13) and sys.exit(1)' || \
		{ echo "wq needs Python 3.11, 3.12 or 3.13; say which with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: asked for as a dependency, some indexes answer with another build
$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(INSTALL) --editable '.[dev,cluster,server]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Install wq into .venv

.PHONY: demo
demo: $(VENV)/.installed ## Four jobs on the shipped model and speech, their table and their report
	$(BIN)/python -m wq.main -m format=int4,nvfp4 group=32,128

.PHONY: test
test: $(VENV)/.developed ## The fast tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile

.PHONY: test-slow
test-slow: $(VENV)/.developed ## Whole commands, exports, footprints and intervals (whole test sets are left to test-all)
	$(BIN)/pytest -m slow --numprocesses 2 -rs tests/test_main.py tests/test_independent.py tests/study tests/numerics \
		tests/whisper/export/test_export.py tests/whisper/decoding/test_long_audio.py

.PHONY: test-browser
test-browser: $(VENV)/.developed ## The report and MLflow's pages in a real browser (needs chromium)
	$(BIN)/pytest -m browser --numprocesses 2 -rs

.PHONY: test-all
test-all: $(VENV)/.developed ## Every test that this machine can run, properties on more examples; each skip says what is missing
	$(BIN)/pytest -m 'not hub' -rs --hypothesis-profile=slow

.PHONY: test-gpu
test-gpu: $(VENV)/.developed ## What has to be seen on a CUDA device: bits, tokens, memory, and speeds (at most 8 minutes)
	$(BIN)/pytest -m gpu -rs
	@$(BIN)/python -c 'import torch; torch.cuda.is_available() or exit("no speeds: this machine has no CUDA device")'
	$(BIN)/python -m benchmarks.numerics --device cuda --rounds 2
	$(BIN)/python -m benchmarks.transcription --device cuda --rounds 2 --batches 1 8

.PHONY: test-cluster
test-cluster: $(VENV)/.developed ## Grids on a real one-node Slurm (as root, with slurm-wlm and munge) and in processes
	$(BIN)/pytest -m 'slurm or slow' -rs tests/test_slurm.py tests/test_launchers.py

.PHONY: test-study
test-study: $(VENV)/.developed ## Every experiment of the study and wq sensitivity, in miniature
	$(BIN)/pytest -m slow --numprocesses 2 -rs tests/test_experiments.py tests/test_sensitivity.py

.PHONY: test-server
test-server: $(VENV)/.developed ## Grids on an MLflow server with PostgreSQL (Debian's postgresql), killed and started again
	$(BIN)/pytest -m 'postgres or slow' -rs tests/test_server.py tests/test_sync.py

.PHONY: test-faults
test-faults: $(VENV)/.developed ## Grids killed, started by many at once, out of space; what memory and secrets become (some as root)
	$(BIN)/pytest -m slow --numprocesses 2 -rs tests/test_growth.py tests/test_faults.py tests/test_security.py

.PHONY: lint
lint: $(VENV)/.developed ## ruff (lint and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.PHONY: format
format: $(VENV)/.developed ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.developed ## Measure speed, write docs/performance.md (half an hour, idle; ONLY="grid stages", ROUNDS=2, QUICK=1)
	$(INSTALL) --editable '.[bench,refs]'
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

.PHONY: ui
ui: $(VENV)/.installed ## MLflow's own page on the same runs, on loopback only
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --workers 1

# Set here, as a shell may have a HOST of its own; `make server HOST=0.0.0.0` overrules it
HOST := 127.0.0.1
PORT := 5000
DATA := build/server

$(VENV)/.served: $(VENV)/.installed
	$(INSTALL) --editable '.[server]'
	@touch $@

.PHONY: server
server: $(VENV)/.served ## An MLflow server on PostgreSQL (HOST=, PORT=, DATA=), on loopback unless told otherwise
	@PATH="$(abspath $(BIN)):$$PATH" recipes/server.sh "$(HOST)" "$(PORT)" "$(DATA)"

.PHONY: refs
refs: $(VENV)/.developed ## Also install the toolkits that the numerics are proven against
	$(INSTALL) --editable '.[refs]'

.PHONY: nano
nano: $(VENV)/.installed ## Make the shipped checkpoint and test set anew (hours; needs flite, espeak-ng, festival)
	recipes/nano/make.sh build/nano

.PHONY: clean
clean: ## Remove .venv and caches; runs and the store stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
