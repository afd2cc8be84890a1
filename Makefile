# `make` shows the targets. Everything runs in .venv, which the first call sets up (about 2 minutes, 6 GB).
PYTHON  ?= python3
PROFILE ?= quick
DATA    ?= auto
BIN     := .venv/bin

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

env: .venv/ready ## set up .venv with the package and all it needs

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12 env")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

figures: env     ## execute every notebook, write all figures and build/report.html
	$(BIN)/python -m cosquant_lite reproduce --profile $(PROFILE) --data $(DATA) --out build

test: env        ## style, unit tests, committed notebook outputs, and every notebook executed twice
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadscope tests --nbval-lax notebooks

format: env      ## format and lint the code and the notebooks
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: env   ## run the notebooks in place: refreshes their committed outputs (quick, embedded)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/[0-9][0-9]_*.ipynb

readme: env      ## rewrite the results table and the picture of README.md
	$(BIN)/python -m cosquant_lite reproduce --data embedded --out build
	$(BIN)/python -m cosquant_lite.readme
	cp build/figures/03-ladder.png results/ladder.png

lab: env         ## open the course in JupyterLab
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

clean:           ## remove what is generated (not .venv, not imported data)
	rm -rf build .pytest_cache .ruff_cache .hypothesis

.PHONY: help env figures test format notebooks readme lab clean
