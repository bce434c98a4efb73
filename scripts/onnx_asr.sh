#!/bin/sh
# Installs onnx-asr for tests/compression/test_fastconformer_onnx.py into build/onnx-asr, 7 MB, without what it wants, which is
# there already. Does nothing, quietly, where it is there already.
set -eu
cd "$(dirname "$0")/.."
test -d build/onnx-asr/onnx_asr && exit 0
"${PYTHON:-.venv/bin/python}" -m pip install --quiet --disable-pip-version-check --no-deps --target build/onnx-asr onnx-asr==0.12.0
