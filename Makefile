# Every target makes what it needs: a fresh machine with Python 3.11+, make and a package index is enough.
PYTHON  ?= python3
BIN     := .venv/bin
ORACLE  := .venv-oracle/bin
PIP     := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS    ?=

.PHONY: ner test oracle lint clean

ner: .venv/ready            ## fine-tune on data/ner; more options: make ner ARGS="--epochs 5"
	$(BIN)/python train.py --task ner $(ARGS)

test: .venv/ready           ## every test that needs nothing but minibert
	$(BIN)/python -m pytest

oracle: .venv-oracle/ready  ## live comparisons with transformers, scikit-learn and seqeval
	$(ORACLE)/python -m pytest tests/oracle

lint: .venv/ready           ## ruff
	$(BIN)/ruff check .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minibert needs Python 3.11 or later; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable '.[test]'
	touch $@

.venv-oracle/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oracle
	$(ORACLE)/python $(PIP) --editable '.[oracle]'
	touch $@

clean:                      ## environments and caches; runs/ and weights/ stay
	rm -rf .venv .venv-oracle *.egg-info build .pytest_cache .ruff_cache
