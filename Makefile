# make quickstart   environment, install, main job (3 to 5 minutes on 2 cores after installation); MODEL=swin or resnet
# make transfer     the quickstart's sizes fine-tuned and probed, in one table; ARGS="--run runs/mine --datasets my/images"
# make test         environment, install, lint, types, tests
# make docs         the documentation as a site, in site/
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MODEL ?= vit
export OMP_NUM_THREADS ?= 2

.PHONY: install quickstart transfer test test-slow lint format docs clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("poa_hf needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python cannot make environments here: apt-get install python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

quickstart: install
	$(VENV)/bin/python examples/quickstart.py --family $(MODEL) --overwrite_output_dir $(ARGS)

transfer: install
	$(VENV)/bin/python examples/transfer.py $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "slow or not slow" $(ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: install
	$(VENV)/bin/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
