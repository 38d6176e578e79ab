# Everything a fresh machine needs comes with the first target: Python >= 3.11, gcc/g++ and make suffice.
#   make train          set up, build the scan, train the demo (or CONFIG=...), sample and score
#   make test           set up and run the tests
#   make sample         draw a grid from runs/demo, or RUN; before there is one, from pretrained/digits where that is
#   make experiments    test the paper's claims (SCALE=cpu or gpu), and write docs/experiments.md
# Settings: CUDA=1 installs the CUDA compiler and builds the kernels, CUDA=0 leaves both out (neither: with them where
# there is an NVIDIA GPU, and for the tests, which read their machine code); PYTHON names the Python that makes .venv.
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
RUN ?= runs/demo
SCALE ?= cpu
ARGS ?=
PY := .venv/bin/python
# Without a configuration accelerate starts one process on a machine that has no GPU, whatever NPROC is.
LAUNCH = $(if $(NPROC),.venv/bin/accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes $(NPROC),$(PY))

.PHONY: setup build train compare sample pretrained eval leaderboard golden-eval golden-dit experiments test test-all gpu-check bench lint format

test test-all: CUDA ?= 1

# Speed: the kernels take most of the build. A compiler that happens to be here is left alone where set-up, which writes
# down what it installed, had no reason to bring one; CUDA_HOME names one to take.
KERNELS = $(if $(CUDA_HOME),auto,$$(grep -q cuda=1 .venv/installed && echo auto || echo off))

setup:
	@$(PYTHON) setup_env.py --cuda $(or $(CUDA),auto)
	@$(PY) ops/build.py --cuda $(if $(filter 0,$(CUDA)),off,$(KERNELS))

build: setup

train: setup
	$(LAUNCH) train.py $(CONFIG) $(if $(DATA),data.path=$(DATA)) $(ARGS)

compare: setup
	$(PY) train.py configs/demo.yaml $(ARGS)
	$(PY) train.py configs/demo_dit.yaml $(ARGS)
	$(PY) eval_fid.py --compare runs/demo runs/demo_dit

# Unless RUN is given: the demo's run once it has a checkpoint, before that the digits in the repository.
DEMO = $(or $(and $(wildcard runs/demo/checkpoints/step_*),runs/demo),$(wildcard pretrained/digits),runs/demo)

sample: setup
	$(PY) sample.py $(if $(filter file,$(origin RUN)),$(DEMO),$(RUN)) $(ARGS)

# Releases RUN's averaged weights to pretrained/NAME, for the repository; LIMIT is in megabytes.
NAME ?= digits
LIMIT ?= $(if $(filter digits,$(NAME)),4,10)

pretrained: setup
	$(PY) -m gspn_dit.hub $(RUN) pretrained/$(NAME) --limit $(LIMIT)

# Without ARGS as the demo is scored: a run on latents needs ARGS with the reference of its images.
eval: setup
	$(PY) eval_fid.py $(RUN) $(or $(ARGS),--reference mnist --features digits --num 1000 --labels balanced)

leaderboard: setup
	$(PY) eval_fid.py --leaderboard

# GOLDEN (data/golden) holds ADM's public sample batch and reference; without them the message says where to get them.
golden-eval: setup
	$(PY) eval_fid.py --golden $(or $(GOLDEN),data/golden) $(ARGS)

# Converts DiT's and SiT's published weights, where they are in GOLDEN, and prints the commands that score them beside
# the published numbers (not yet measured here); without them the message says where to get them.
golden-dit: setup
	$(PY) -m gspn_dit.convert.reproduce $(or $(GOLDEN),data/golden)

experiments: setup
	$(PY) -m experiments --scale $(SCALE) $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(or $(JOBS),2) -m "not slow" $(ARGS)

test-all: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(or $(JOBS),2) $(ARGS)

# `make gpu-check PYTHON=python3` uses a Python that has torch already: no .venv, no network.
gpu-check: $(if $(filter file,$(origin PYTHON)),setup)
	$(if $(filter file,$(origin PYTHON)),$(PY),$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

bench: setup
	$(PY) benchmarks/bench_cpu.py $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
