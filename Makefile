# make demo   the environment, and what retrofits are worth, in half a minute
# make test   the environment, and all tests     make fast   the tests that take no time
# make check  lint, format, types                make bench  paired speed ratios
# make long   the studies and guides that take minutes, from their first line to the last
# make docs   the reference and the site, in docs/_build/html; make site: and a playground in it
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread a process: two processes with two threads each on two cores are many times slower than either.
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test check fast long bench docs site clean

demo: $(VENV)/.runtime
	$(BIN)/retroact demo

# A file is one worker's, as its fixtures and caches serve all of its tests.
test: $(VENV)/.dev
	$(ONE) $(BIN)/python -m pytest -n 2 --dist loadfile

fast: $(VENV)/.dev
	$(ONE) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not long"

long: $(VENV)/.dev
	$(ONE) $(BIN)/python -m pytest -n 2 --dist load -m long

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(ONE) $(BIN)/python bench/inference.py
	$(BIN)/python -m pip install --quiet --no-deps torchattacks
	$(ONE) $(BIN)/python bench/attacks.py --net lenet-mnist --n 200
	$(ONE) $(BIN)/python bench/attacks.py --net resnet20-cifar10 --n 32

docs: $(VENV)/.dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

site: docs
	$(BIN)/retroact playground lenet-mnist --hardened lenet-mnist-robust --n 100 \
	  --out docs/_build/html/play.html

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

# timm without what it depends on: torchvision is a library of its own size, and its networks need none of it.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps timm
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build
