# Two commands need nothing but Python 3.11, pip and make:
#   make demo   translate the recordings in examples/
#   make test   check the documentation, the code, and every test that takes seconds
#   make test-slow   run the tests that take longer and those of the page in a browser
#   make test-page   run those of the page alone
#   make site   build the documentation into site/
#   make test-ray   the jobs on a real Ray cluster of this machine, which `make test` leaves out
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch comes by itself, after all that it needs, which its own index is then not asked for.
TORCH := torch==2.13.0
# PyPI's torch for Linux is the CUDA build, several gigabytes. This index has one without CUDA; its version, 2.13.0+cpu, is
# the higher of the two. With an NVIDIA GPU: make demo TORCH_INDEX=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo programs test test-slow test-page test-ray lint site format clean

$(VENV)/.core: requirements.lock pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --retries 2 $(TORCH) $(TORCH_INDEX:%=--extra-index-url %)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-dev.lock
	touch $@

$(VENV)/.docs: $(VENV)/.dev requirements-docs.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-docs.lock
	touch $@

demo: $(VENV)/.core
	$(BIN)/sprachbund translate examples/recordings/* --to en,es,fr,it,de,ru --table --format srt --out translations --overwrite

# --no-loadscope-reorder: tests/conftest.py puts the slow files first, and pytest-xdist would sort them again.
SPREAD := --ignore tests/serving/page --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

programs: $(VENV)/.docs
	-scripts/browser.sh   # the tests of the page are skipped without it
	-scripts/strace.sh    # nor is the network watched without it
	-scripts/shells.sh    # nor does any shell but bash complete without them
	-scripts/older_client.sh   # nor is OpenAI's client of a year ago tested without it
	-scripts/onnx_asr.sh   # nor does onnx-asr run exported models without it

# CI runs `make test TESTS="not long"`: quick and slow tests of a file share what they need, which is then made once.
TESTS := not slow and not long

test: programs
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target site lint
	$(BIN)/python -m pytest -m "$(TESTS)" $(SPREAD)

test-slow: test-page
	$(BIN)/python -m pytest -m "slow and not long" $(SPREAD)

test-page: programs
	$(BIN)/python -m pytest tests/serving/page   # a browser's clock runs beside these, so no other tests do

test-ray: $(VENV)/.dev
	scripts/ray.sh
	PYTHONPATH=$(CURDIR)/build/ray $(BIN)/python -m pytest -k ray tests/util/test_jobs.py tests/data/test_making.py \
		tests/evaluation/test_parts.py tests/research/gradient_sharing/test_collect.py \
		tests/research/encoder_transfer/test_run.py tests/units/test_making.py \
		tests/compression/test_pseudo_labels.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

site: site/.built

# Any warning, such as a link to a missing page or heading, is an error.
site/.built: $(VENV)/.docs mkdocs.yml README.md $(shell find docs scripts src -type f -not -name '*.pyc')
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	touch $@

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) translations site
