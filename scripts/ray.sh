#!/bin/sh
# Installs Ray for `make test-ray` into build/ray, a folder of its own, since its 200 MB serve these tests alone. Does nothing,
# quietly, where it is there already.
set -eu
cd "$(dirname "$0")/.."
test -d build/ray/ray && exit 0
"${PYTHON:-.venv/bin/python}" -m pip install --quiet --disable-pip-version-check --target build/ray ray==2.60.0
