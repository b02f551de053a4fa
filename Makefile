# `make help` explains every target. Nothing here is global: the environment is ./.venv, results are ./results.

PROFILE ?= lab
MODEL ?=
DATA ?=
TEXTS ?=
NB ?=
SEED ?=
ORDERS ?=
STREAMS ?=
SCHEDULER ?=
export SCHEDULER
LAB ?=
MUTANTS ?=
SHAPE ?=
# The Python that builds .venv (3.11, 3.12 or 3.13), and how many test processes run side by side.
PYTHON ?= python3
JOBS ?= 2

PY := .venv/bin/python
KEDIT := .venv/bin/kedit
# The environment is renewed when the *content* of these files changes; a fresh checkout's time stamps say nothing.
ENV := .venv/.kedit-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
WHICH := --profile $(PROFILE) $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") \
	$(if $(TEXTS),--texts "$(TEXTS)") $(if $(SEED),-p seed=$(SEED)) $(if $(ORDERS),--orders "$(ORDERS)")
RUN := $(KEDIT) reproduce $(WHICH) $(if $(NB),--only "$(NB)")

.DEFAULT_GOAL := help
.PHONY: help env lab-model sweep smoke reproduce report bench gpu tables test mutate lint clean lab

help:  ## this list
	@echo "make TARGET [PROFILE=smoke|lab|cpu|gpu] [MODEL=id or folder] [DATA=edits] [TEXTS=plain text] [NB=03] [SEED=1] [ORDERS=all or 0,1] [STREAMS=…] [SCHEDULER=tcp://…] [SHAPE=tiny]"
	@echo "Times are for 2 CPU cores; every target but help and clean makes the environment first."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(ENV)  ## make .venv with every dependency at its pinned version (a few minutes and a download, once)

$(ENV):
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
		sys.exit(None if ok else f"kedit needs Python 3.11 to 3.13, $(PYTHON) is {sys.version.split()[0]}: make env PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@rm -f .venv/.kedit-*
	@touch $@
	@$(KEDIT) fetch-model \
		|| echo "make env: goes on without this model; it is fetched when it is first asked for"

lab-model: $(ENV)  ## train the lab models again from their recipe (up to 2.5 hours; minutes on a GPU)
	$(PY) bench/lab_model.py

sweep: $(ENV)  ## run further orders into figures/data (an hour; STREAMS=main, scaled, regimes, others, causes, sensitivity or names; NB and MODEL do not apply)
	$(KEDIT) sweep --profile $(PROFILE) $(if $(ORDERS),--orders "$(ORDERS)") $(if $(STREAMS),--streams "$(STREAMS)")

smoke: $(ENV)  ## run every notebook at toy size into results/executed-smoke (some minutes)
	$(KEDIT) reproduce --profile smoke

reproduce: $(ENV)  ## run what is stale into notebooks/executed and figures (under 45 minutes from nothing, seconds if current)
	$(RUN)

report: $(ENV)  ## turn what reproduce executed into report/index.html and its pages, read without a network (half a minute)
	$(KEDIT) report $(WHICH)

bench: $(ENV)  ## time every path against the plain one into figures/benchmarks*.csv (some minutes; PROFILE=smollm2: the pretrained model)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) bench/speed.py --profile $(PROFILE)

gpu: $(ENV)  ## what needs a GPU, part by part, into figures/gpu.* (8 minutes on one H100-class card; SHAPE=tiny rehearses it)
	PYTHONPATH=tests $(PY) bench/gpu.py $(if $(SHAPE),--shape "$(SHAPE)")

tables: $(ENV)  ## write the tables of README.md and docs/ from figures/ (seconds)
	$(PY) bench/page_tables.py

test: $(ENV)  ## every test, the smoke run of the notebooks included (about a quarter of an hour)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)

mutate: $(ENV)  ## how much the tests notice: small changes to some files, one at a time (minutes; MUTANTS='kedit_lib.editing.closed_form*')
	OMP_NUM_THREADS=1 $(PY) -m mutmut run --max-children $(JOBS) $(if $(MUTANTS),"$(MUTANTS)")
	$(PY) -m mutmut results

lint: $(ENV)  ## ruff, and the house rules for notebook sources (seconds)
	$(PY) -m ruff check .
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/report/test_sources.py

lab: $(ENV)  ## open the notebooks in JupyterLab, live cells included (until you stop it; LAB=--no-browser and such go to it)
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyter lab --notebook-dir=notebooks $(LAB)

clean:  ## remove results, stamps, report and failed notebooks; nothing committed (the next reproduce starts from nothing)
	rm -rf results report .report.*.tmp .stamps .pytest_cache .ruff_cache .hypothesis build mutants *.egg-info
	rm -rf notebooks/executed/.*.tmp
	find kedit_lib tests bench notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
