# make all: environment + benchmark.  make test: environment + tests.  make docs: the site.  See README.md.
VENV ?= .venv
CORES ?= $(shell nproc)
PYTHON ?= python3
# Of every command below: found by PATH and never written out, because make cuts a path at its spaces.
BIN := $(abspath $(VENV))/bin
# Without bytecode every process compiles torch again (seconds each).
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(BIN):$(PATH)

.PHONY: all test test-fast bad-inputs gpu-check lint docs reference bench readme pull wheel lock clean

all: $(VENV)/.ready
	snakemake --cores $(CORES) all
	@echo
	@echo "tables:  results/mini/tables/   (table2.md first)"
	@echo "figures: results/mini/figures/"
	@echo "runs:    results/mini/runs/     (fit.csv, run.json of each run); images/, scores/ beside it"

test test-fast: lint
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 $(if $(filter test-fast,$@),-m "not slow")
	python -m pytest --doctest-modules passionsr -q

# What users bring and cannot be used, with the answer, exit status and files of each.
bad-inputs: $(VENV)/.ready
	python -m pytest -q -m bad_inputs tests/bad_inputs

# On a machine with a GPU, with whatever torch python3 has: is everything right there, and what would the paper's scale take?
gpu-check:
	$(PYTHON) -m passionsr.report.gpu_check

lint: $(VENV)/.ready
	ruff check .
	ruff format --check .
	lint-imports
	snakefmt --check Snakefile workflow/rules
	mypy
	python tools/check_house.py
	codespell
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir .cache/site

# Strict: a broken link or anchor ends it. Offline: no web fonts, no scripts from elsewhere.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "site/index.html"

bench: $(VENV)/.ready
	passionsr bench results/mini --step

readme: $(VENV)/.ready
	passionsr readme

pull: $(VENV)/.ready
	python workflow/scripts/dvc_sync.py pull

# The generated pages of docs/reference and the schema for editors.
reference: $(VENV)/.ready
	python tools/make_reference.py
	python tools/make_cli_reference.py

wheel: $(VENV)/.ready
	python -m build --no-isolation

lock:
	uv pip compile pyproject.toml --extra dev --universal --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --upgrade -o requirements.lock
	python tools/make_environment.py

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv "$(VENV)"
	python -m pip install --quiet uv
	env -u VIRTUAL_ENV python -m uv pip sync --compile-bytecode requirements.lock
	env -u VIRTUAL_ENV python -m uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch "$@"

clean:
	rm -rf "$(VENV)" results/mini results/test .snakemake .cache
