# `make` shows the targets. Everything runs in .venv, which the first call sets up (two to three minutes, 7 GB),
# or in the conda environment of environment.yml if that is active.
PYTHON  ?= python3
PROFILE ?= quick
DATA    ?= auto
# In the archive of `course pack` everything is installed from the wheels beside this file, without network.
OFFLINE := $(if $(wildcard wheels),--no-index --find-links wheels)

ifeq ($(CONDA_DEFAULT_ENV),cosquant-lite)
RUN   := python
READY :=
else
RUN   := .venv/bin/python
READY := .venv/ready
endif

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

env: $(READY)    ## set up .venv with the package and all it needs

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12 env")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(OFFLINE) --upgrade pip
	.venv/bin/python -m pip install --quiet $(OFFLINE) --editable ".[course,flower,site,test]"
	@touch $@

figures: env     ## execute every notebook, write all figures and build/report.html
	$(RUN) -m cosquant_lite reproduce --profile $(PROFILE) --data $(DATA) --out build

test: env        ## style, unit tests, committed notebook outputs, and every notebook executed again
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "not alone" tests --nbval-lax notebooks/0[01]_*.ipynb
	$(RUN) -m pytest -m alone tests/test_flower_deployment.py

fuzz: env        ## a million mutated frames against the decoder (about three minutes)
	$(RUN) tests/fuzz_wire.py 1000000 1

bench: env       ## speed, size and error of the codec, and the time of a round, in build/bench
	$(RUN) -m cosquant_lite bench --out build/bench

format: env      ## format and lint the code and the notebooks
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

notebooks: env   ## run the notebooks in place: refreshes their committed outputs (quick, embedded)
	$(RUN) -m jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/[0-9][0-9]_*.ipynb

readme: env      ## rewrite the tables and the picture of README.md
	$(RUN) -m cosquant_lite reproduce --data embedded --out build
	$(RUN) -m cosquant_lite.readme
	cp build/figures/03-ladder.png results/ladder.png

expected: env    ## take the recorded values as the expected ones (then read the diff)
	-$(RUN) -m cosquant_lite reproduce --data embedded --out build
	$(RUN) -m cosquant_lite.expected build/report.json

site: env        ## build the notebooks into a static site, build/site
	$(RUN) docs/make_site.py

exercises: env   ## your copies of the exercises, in my-exercises (what you have written there stays)
	$(RUN) -m cosquant_lite course start

lab: env         ## open the course in JupyterLab
	$(RUN) -m jupyter lab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

clean:           ## remove what is generated (not .venv, not imported data)
	rm -rf build .pytest_cache .ruff_cache .hypothesis

.PHONY: help env figures test fuzz bench format notebooks readme expected site exercises lab clean
