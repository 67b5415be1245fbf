# make install   everything for development, in .venv
# make demo      train, evaluate, use and explain a network on handwritten digits
# make test      the tests
# make check     format, lint, types
# make docs      the figures and tables of the documentation, made anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev
DEMO := $(VENV)/.demo
WORKERS ?= 2

.PHONY: install demo test check format docs clean

install: $(DEV)

demo: $(if $(wildcard $(DEV)),$(DEV),$(DEMO))
	$(BIN)/python examples/demo.py

# Tests that fork have a worker for each file: a process forked after a library has started threads can hang.
FORKING := $(patsubst %,tests/test_%.py,distributed memory resume stopping train_faults trackers)

test: $(DEV)
	$(BIN)/python -m pytest -n 6 --dist loadfile $(FORKING)
	$(BIN)/python -m pytest -n $(WORKERS) $(FORKING:%=--ignore=%)

check: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(DEV)
	$(BIN)/python docs/make.py

clean:
	rm -rf $(VENV) build dist

$(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing what development needs; torch is large, so this takes a minute or two"
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing what the demo needs; torch is large, so this takes a minute or two"
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@
