# `make demo` and `make test` do all the set-up on a new machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RELEASE := build/release
# One thread per library, since steps run in parallel.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint docs release-check clean

demo: $(VENV)/.runtime demo-data/dataset_description.json
	$(BIN)/qmri-bids demo-data demo-out participant -w demo-work
	$(BIN)/qmri-bids demo-data demo-out group -w demo-work
	@echo "Reports: demo-out/sub-01.html, demo-out/sub-02.html, demo-out/group_report.html"

# Written again after a change of its source; the file is the last to be written.
demo-data/dataset_description.json: $(wildcard qmri_bidsapp/demo/*.py) | $(VENV)/.runtime
	rm -rf demo-data
	$(BIN)/qmri demo demo-data

test: $(VENV)/.all
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

test-all: $(VENV)/.all
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/qmri boutiques > $(VENV)/boutiques.json && $(BIN)/bosh validate $(VENV)/boutiques.json

docs: $(VENV)/.all
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

# Source and binary distribution, from which a clean environment simulates a head and maps its T2.
release-check:
	rm -rf dist $(RELEASE) && mkdir -p $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/pip install --quiet build twine
	$(RELEASE)/tools/bin/python -m build --outdir dist .
	$(RELEASE)/tools/bin/twine check --strict dist/*
	tar -tzf dist/*.tar.gz | grep -q '^[^/]*/constraints.txt$$' || { echo "constraints.txt is not in the sdist"; exit 1; }
	$(PYTHON) -m venv $(RELEASE)/clean
	$(RELEASE)/clean/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	$(RELEASE)/clean/bin/pip check
	cd $(RELEASE) && clean/bin/qmri-bids --version && clean/bin/qmri boutiques > qmri_bidsapp.json
	cd $(RELEASE) && clean/bin/qmri demo data
	cd $(RELEASE) && clean/bin/qmri-bids data out participant --participant-label 01 --models t2 --no-certificate -w work
	test -f $(RELEASE)/out/sub-01/anat/sub-01_T2map.nii.gz
	@ls -l dist

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "Python 3.10 to 3.13 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,lint,docs]"
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) demo-data demo-out demo-work docs/_build build dist
