#!/bin/sh
# Installs OpenAI's client of a year ago (13 November 2025) for tests/serving/test_older_client.py, with what it wants, into an
# environment of its own: build/openai-2.8.0, 56 MB. Does nothing, quietly, where it is there already.
set -eu
cd "$(dirname "$0")/.."
home=build/openai-2.8.0
"$home/bin/python" -c "import openai, websockets" 2>/dev/null && exit 0
rm -rf "$home"
"${PYTHON:-python3}" -m venv "$home"
"$home/bin/pip" install --quiet --disable-pip-version-check 'openai[realtime]==2.8.0'
