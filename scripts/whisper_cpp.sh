#!/bin/sh
# Compiles whisper.cpp 1.9.3 for this processor, with pywhispercpp around it, and installs both into the environment of the
# peers that benchmarks/peers.py compares with. The source of pywhispercpp 1.5.1 brings whisper.cpp 1.8.5. Takes some minutes,
# a compiler and git. PEERS names another interpreter, WHISPER_CPP_REPOSITORY a copy of the repository.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "${PEERS:-.peers/bin/python}")
folder=build/whisper.cpp
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary pywhispercpp --dest "$folder" pywhispercpp==1.5.1
tar -xzf "$folder/pywhispercpp-1.5.1.tar.gz" -C "$folder"
source="$folder/pywhispercpp-1.5.1"
rm -r "$source/whisper.cpp"
git -c advice.detachedHead=false clone --quiet --depth 1 --branch v1.9.3 "${WHISPER_CPP_REPOSITORY:-https://github.com/ggml-org/whisper.cpp}" "$source/whisper.cpp"
PYWHISPERCPP_VERSION=1.5.1 "$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "./$source"
# The extension finds its libraries where they were compiled; the benchmark looks for them beside it first.
cp -P "$source"/build/temp.*/_pywhispercpp/bin/lib*.so* "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
