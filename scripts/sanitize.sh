#!/bin/sh
# Builds the native engine with the address and undefined-behaviour sanitizers, and runs the tests of the engines
# and the mutants of packed weights on it. The tree is not touched: all is built in a temporary directory.
# Arguments are those of Python, in place of these tests:
#   scripts/sanitize.sh -m tests.fuzz.long --formats "packed weights" --mutants 10000
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r "$root/src" "$root/setup.py" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$work"
rm -f "$work"/src/sprachbund/engines/_native*
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
cd "$work"
"$python" -m pip install --quiet --disable-pip-version-check --target "$work/build" nanobind  # pip has it while it builds only
PYTHONPATH="$work/build" CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" "$python" setup.py --quiet build_ext --inplace
ls src/sprachbund/engines/_native*.so > /dev/null  # the extension is optional, here it is not

cd "$root"
test "$#" -gt 0 || set -- -m pytest -p no:cacheprovider tests/engines tests/fuzz \
    tests/decoding/test_native_search.py tests/decoding/test_native_drafts.py tests/decoding/test_running_search.py
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# Python and torch keep memory until the end on purpose, so leaks are not looked for.
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$work/src" PYTEST_TIMEOUT=0 \
    "$python" "$@"
