#!/bin/sh
# Compiles the native engine's kernels by themselves and checks them against plain loops, for 64-bit Arm under emulation.
# On Debian, as root:
#     apt-get install g++-aarch64-linux-gnu qemu-user
# With another COMPILER and EMULATOR for other processors; EMULATOR=env runs them on this one.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
native=$root/src/sprachbund/engines/native
compiler=${COMPILER:-aarch64-linux-gnu-g++}
emulator=${EMULATOR:-qemu-aarch64}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# shellcheck disable=SC2086  # COMPILER may hold flags
$compiler -std=c++17 -O2 -ftree-vectorize -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-strict-aliasing \
    -Wno-psabi ${STATIC--static} -I "$native" "$root/scripts/kernels_check.cpp" "$native"/isa_*.cpp "$native/processor.cpp" -o "$work/check"
$emulator "$work/check"
