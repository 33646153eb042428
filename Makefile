# Needs Python >= 3.11, pip and make. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
VENV_PEERS ?= .venv-peers
VENV_FLOWER ?= .venv-flower
VENV_PFL ?= .venv-pfl
VENV_NEWEST ?= .venv-newest
VENV_PINS ?= .venv-pins

INSTANCE ?= traces-switch32 facility-tiny download-energy download-small split-resnet18 split-tiny selection-fail selection-tiny
TIME_LIMIT ?= 10
JOBS ?= 2
OUT ?= out/run
ARGS ?=
WORKERS ?= 2
INPUTS ?= 20000
SEED ?= 0
TIMES ?= 3

PY := $(VENV)/bin/python
PIP_INSTALL := -m pip install -q --disable-pip-version-check
PINNED := $(PIP_INSTALL) -c constraints.txt --no-build-isolation  # isolated, a build would take any setuptools
HELD := $(PIP_INSTALL) -c constraints-held.txt
REQUIREMENTS := pyproject.toml constraints.txt
PACKAGED := edgeopt problems solvers evaluation
LINTED := $(PACKAGED) tests docs conftest.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-slow test-newest explore fuzz test-flower lint types bench bench-peers bench-flower bench-rounds docs pins clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

run: $(VENV)/.stamp-run  ## solve bundled instances with every solver, then train a small model and cache its experts: out/run
	$(PY) -m edgeopt compare $(INSTANCE) --time-limit $(TIME_LIMIT) --jobs $(JOBS) --out $(OUT)
	@$(PY) docs/make_images.py --rows $(OUT) --out $(OUT)/plots
	$(PY) -m edgeopt study expert-caching --quick --out $(OUT)/expert-caching
	@echo "report: $(OUT)/report.html   pictures: $(OUT)/plots   one file per run: $(OUT)/rows   a trained model: $(OUT)/expert-caching"

test: $(VENV)/.stamp-test  ## the fast tests, WORKERS processes at once; ARGS="-k name" to choose
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.stamp-test  ## every test, the slow ones included
	$(PY) -m pytest -m "not peers" $(ARGS)

test-newest: $(VENV_NEWEST)/.stamp-venv  ## the fast tests with the newest versions that pyproject.toml allows, in an environment of its own
	$(VENV_NEWEST)/bin/python $(HELD) --upgrade --upgrade-strategy eager -e ".[test]"
	$(VENV_NEWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

fuzz: $(VENV)/.stamp-test  ## spoilt files for every reader: INPUTS=20000 SEED=0, SEED=random for others
	EDGEOPT_FUZZ_INPUTS=$(INPUTS) EDGEOPT_FUZZ_SEED=$(SEED) $(PY) -m pytest -m slow -n $(WORKERS) tests/fuzz $(ARGS)

test-flower: $(VENV_FLOWER)/.stamp-flower  ## training on Flower, real processes included (ten minutes), in an environment of its own
	$(VENV_FLOWER)/bin/python -m pytest -m "not peers" tests/training/runners/test_flower.py $(ARGS)

explore: $(VENV)/.stamp-test  ## the property tests on examples that were never tried, TIMES times over; ARGS="-k name" to choose
	@for time in $$(seq $(TIMES)); do \
		$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "hypothesis and not peers" --hypothesis-profile explore $(ARGS) || exit 1; \
	done

lint: $(VENV)/.stamp-dev  ## ruff: rules and format
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)

types: $(VENV)/.stamp-dev  ## mypy, strict
	$(PY) -m mypy

bench: $(VENV)/.stamp-report  ## the benchmarks; ARGS="--help" tells more
	$(PY) -m edgeopt.evaluation.benchmarks $(ARGS)

bench-peers: $(VENV_PEERS)/.stamp-peers  ## the benchmarks against other packages, in an environment of their own
	$(VENV_PEERS)/bin/python -m edgeopt.evaluation.benchmarks.peers $(ARGS)

bench-flower: $(VENV)/.stamp-test $(VENV_FLOWER)/.stamp-flower  ## rounds of training against Flower's simulation
	$(PY) -m edgeopt.evaluation.benchmarks.federated_rounds --flower-python $(VENV_FLOWER)/bin/python $(ARGS)

bench-rounds: $(VENV)/.stamp-test $(VENV_FLOWER)/.stamp-flower $(VENV_PFL)/.stamp-pfl  ## rounds of training, small and large, against pfl and Flower
	$(PY) -m edgeopt.evaluation.benchmarks.rounds --pfl-python $(VENV_PFL)/bin/python --flower-python $(VENV_FLOWER)/bin/python $(ARGS)

docs: $(VENV)/.stamp-docs  ## the documentation, under site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -q
	@echo "documentation: site/index.html"

pins: $(VENV_PINS)/.stamp-venv  ## renew constraints.txt: the newest versions that pyproject.toml allows; shows what changed
	$(VENV_PINS)/bin/python $(PIP_INSTALL) --upgrade pip
	$(VENV_PINS)/bin/python .ci/pins.py

clean:  ## remove the environments, build products, caches and out/run
	rm -rf $(VENV) $(VENV_PEERS) $(VENV_FLOWER) $(VENV_PFL) $(VENV_NEWEST) $(VENV_PINS) build dist site out/run *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find $(PACKAGED) tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp stands for an installed set of packages: made once, and again when the requirements change.

# Debian's python3 lacks ensurepip: there the pip outside installs one inside.
$(foreach venv,$(VENV) $(VENV_PEERS) $(VENV_FLOWER) $(VENV_PFL) $(VENV_NEWEST) $(VENV_PINS),$(venv)/.stamp-venv):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeopt needs Python >= 3.11, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(@D) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --without-pip $(@D) && $(PYTHON) -m pip --python $(@D)/bin/python install -q -c constraints.txt pip; }
	@touch $@

$(VENV)/.stamp-build: $(VENV)/.stamp-venv constraints.txt
	$(PY) $(PINNED) setuptools
	@touch $@

$(VENV)/.stamp-report: $(VENV)/.stamp-build $(REQUIREMENTS)
	$(PY) $(PINNED) -e ".[report]"
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-build $(REQUIREMENTS)
	$(PY) $(PINNED) -e ".[report,train]"
	@touch $@ $(@D)/.stamp-report

$(VENV)/.stamp-test: $(VENV)/.stamp-build $(REQUIREMENTS)
	$(PY) $(PINNED) -e ".[test]"
	@touch $@ $(@D)/.stamp-run $(@D)/.stamp-report

$(VENV)/.stamp-docs: $(VENV)/.stamp-build $(REQUIREMENTS)
	$(PY) $(PINNED) -e ".[docs,report,train]"
	@touch $@ $(@D)/.stamp-run $(@D)/.stamp-report

$(VENV)/.stamp-dev: $(VENV)/.stamp-build $(REQUIREMENTS)
	$(PY) $(PINNED) -e ".[dev]"
	@touch $@ $(@D)/.stamp-test $(@D)/.stamp-docs $(@D)/.stamp-run $(@D)/.stamp-report

# These hold other packages back (Flower: typer and rich), so only what never floats is pinned there.
$(VENV_PEERS)/.stamp-peers: $(VENV_PEERS)/.stamp-venv pyproject.toml constraints-held.txt
	$(VENV_PEERS)/bin/python $(HELD) -e ".[report]" submodlib-py
	@touch $@

$(VENV_FLOWER)/.stamp-flower: $(VENV_FLOWER)/.stamp-venv pyproject.toml constraints-held.txt
	$(VENV_FLOWER)/bin/python $(HELD) -e ".[flower]" "flwr[simulation]" pytest hypothesis
	@touch $@

$(VENV_PFL)/.stamp-pfl: $(VENV_PFL)/.stamp-venv constraints-held.txt
	$(VENV_PFL)/bin/python $(HELD) pfl==0.6.0 torch
	@touch $@
