# Every target makes what it needs: a fresh machine with Python 3.11+, make and a package index is enough.
PYTHON  ?= python3
BIN     := .venv/bin
ORACLE  := .venv-oracle/bin
PIP     := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS    ?=
BENCH_DATA ?= $(or $(DATA),data/ner)

.PHONY: ner test oracle bench mutants mutants-changed torture formulas lint wheel clean

ner: .venv/ready            ## fine-tune on data/ner; more options: make ner ARGS="--epochs 5"
	$(BIN)/python train.py --task ner $(ARGS)

test: .venv/ready           ## every test that needs nothing but minibert, a worker a core; fetches minilm-l6 once
	$(BIN)/python -m minibert fetch minilm-l6
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

oracle: .venv-oracle/ready  ## live comparisons with transformers, scikit-learn and seqeval
	$(ORACLE)/python -m pytest tests/oracle

bench: .venv-oracle/ready   ## minibert beside transformers: make bench DATA=folder; writes benchmarks/results
	$(ORACLE)/python -m minibert fetch minilm-l6
	$(ORACLE)/python benchmarks/compare.py --data $(BENCH_DATA) $(ARGS)

mutants: .venv/ready        ## change every labelled line and see its tests fail; writes docs/mutants.md
	$(BIN)/python tests/tools/mutants.py $(ARGS)

mutants-changed: .venv/ready  ## those that have changed since their mutants died, and a tenth of the rest
	$(BIN)/python tests/tools/mutants.py --changed $(ARGS)

torture: .venv/ready        ## kill runs at random, give every reader 10,000 bad files and large ones; how long: docs/reliability.md
	$(BIN)/python -m minibert fetch minilm-l6
	$(BIN)/python tests/tools/torture.py $(ARGS)
	$(BIN)/python tests/tools/bad_input.py
	$(BIN)/python tests/tools/odd_files.py
	$(BIN)/python tests/tools/sizes.py

formulas: .katex/ready      ## every formula of docs/ through KaTeX; needs node and npm
	node tests/tools/formulas.mjs

lint: .venv/ready           ## ruff and mypy; strict where the mathematics is, see pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: .venv/ready          ## dist/minibert-VERSION-py3-none-any.whl; tried in an environment of its own
	rm -rf build dist/minibert-*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build
	$(BIN)/python -m pytest tests/wheel

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minibert needs Python 3.11 or later; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable '.[test]'
	touch $@

.venv-oracle/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oracle
	$(ORACLE)/python $(PIP) --editable '.[oracle,bench]'
	touch $@

.katex/ready: Makefile
	npm install --silent --no-audit --no-fund --prefix .katex katex@0.16.47
	touch $@

clean:                      ## environments and caches; runs/ and weights/ stay
	rm -rf .venv .venv-oracle .katex *.egg-info build dist .pytest_cache .ruff_cache .mypy_cache
