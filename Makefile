# make setup   a virtual environment in .venv with everything, at the versions of constraints.txt
# make build   engines of the mha-rope form: export, fuse, lower, build, check -> out/mha-rope
# make test    the test suite
# make corpus  every architecture of tests/corpus through every exporter: fused, run and compared (half an hour)
# make fuzz    N random attention programs (10000): fused or refused, never wrong; exit code 1 if one is
# make gpu     every test that needs an NVIDIA GPU -> benchmarks/results/gpu.json; without one it says what did not run
# make bench   the eight cases of attention timed beside every peer, each answer checked (eight minutes on two cores)
# make lint    ruff and mypy
# make tables  the generated tables and transcripts of README.md and docs/, written again
# PYTHON=...   the Python (3.11 or newer) that .venv is made with

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: setup build test corpus fuzz gpu bench lint tables clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
# Two workers, one thread each: more threads than cores makes every numeric test slower.
WORKERS ?= 2

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
	  echo "make: no Python 3.11 or newer was found; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

build: setup
	$(BIN)/python -m export build

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -rs

# Exports are kept there from one run to the next.
CORPUS ?= $(or $(TMPDIR),/tmp)/attnproof-corpus

corpus: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/corpus/run_caches.py --workers $(WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/corpus/run_corpus.py --workers $(WORKERS) --folder $(CORPUS)

N ?= 10000

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run_fuzz.py --programs $(N) --jobs $(WORKERS)

gpu: setup
	$(BIN)/python tests/gpu/run_gpu.py

bench: setup
	@mkdir -p out/bench
	$(BIN)/python -m export bench cpu -o out/bench/speed.json --plots out/bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tables: setup
	$(BIN)/python tests/pages.py
	$(BIN)/python tests/forms_table.py --jobs $(WORKERS)
	$(BIN)/python tests/lower/targets_table.py
	$(BIN)/python tests/lower/target_pages.py
	$(BIN)/python tests/fuse/rules_table.py
	$(BIN)/python tests/reader_pictures.py
	$(BIN)/python benchmarks/fusion.py --render
	$(BIN)/python benchmarks/pass_time.py --render
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/model_speed.py --render
	$(BIN)/python benchmarks/whole_models.py --render
	$(BIN)/python benchmarks/large_model.py --render

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache
