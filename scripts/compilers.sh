#!/bin/sh
# Compiles the native engine for every system with Clang, every warning an error, and for this one with GCC too; runs
# the kernels against plain loops for this processor and, where QEMU is (apt-get install qemu-user), for 64-bit Arm.
# Clang and the systems' headers come from PyPI's ziglang, 411 MB unpacked, into build/compilers. Arguments: targets.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
native=$root/src/sprachbund/engines/native
home=$root/build/compilers
python=$home/bin/python
test -x "$python" || python3 -m venv "$home"
"$python" -m pip install --quiet --disable-pip-version-check ziglang nanobind
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nanobind=$("$python" -c 'import nanobind; from pathlib import Path; print(Path(nanobind.include_dir()).parent)')
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
flags="-std=c++17 -O2 -ftree-vectorize -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-strict-aliasing"
flags="$flags -fvisibility=hidden -g0 -Wall -Wextra -Wno-psabi -Werror"

# Python's headers are this system's, with what its configuration says for Windows.
mkdir "$work/windows"
cp -r "$headers/." "$work/windows"
cat > "$work/windows/pyconfig.h" <<'END'
#include <stddef.h>
#include <stdio.h>
#define MS_WINDOWS
#define MS_WIN64
#define NT_THREADS
#define HAVE_DECLSPEC_DLL
#define HAVE_PY_SSIZE_T 1
typedef long long Py_ssize_t;
#define PY_SSIZE_T_MAX 0x7fffffffffffffffLL
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_TIME_T 8
#define ALIGNOF_MAX_ALIGN_T 8
END

# shellcheck disable=SC2086  # the compiler and the flags are several words
compile() { # compiler, Python's headers
    for source in "$native"/*.cpp; do
        $1 $flags -fPIC -I "$native" -isystem "$2" -isystem "$nanobind/include" -isystem "$nanobind/src" \
            -isystem "$nanobind/ext/robin_map/include" -c "$source" -o "$work/$(basename "$source").o"
    done
}

clang="$python -m ziglang c++"
for target in ${*:-x86_64-linux-gnu aarch64-linux-gnu x86_64-macos aarch64-macos x86_64-windows-gnu}; do
    case $target in *windows*) compile "$clang -target $target" "$work/windows" ;; *) compile "$clang -target $target" "$headers" ;; esac
    echo "clang, $target: compiled"
done
if test $# -gt 0; then exit; fi

for compiler in "${CXX:-g++}" "$clang"; do
    compile "$compiler" "$headers"
    # shellcheck disable=SC2086
    $compiler -shared "$work"/*.o -o "$work/_native.so"
    (cd "$work" && "$python" -c 'import _native; print(*_native.instruction_sets())')
    COMPILER=$compiler EMULATOR=env "$root/scripts/kernels_check.sh"
    COMPILER="$compiler -DSPRACHBUND_EMULATED_TILES" EMULATOR=env "$root/scripts/kernels_check.sh"
done
if command -v "${EMULATOR:-qemu-aarch64}" > /dev/null; then
    for processor in max cortex-a76; do # with products of 8-bit matrices and without
        COMPILER="$clang -target aarch64-linux-musl" EMULATOR="${EMULATOR:-qemu-aarch64} -cpu $processor" "$root/scripts/kernels_check.sh"
    done
else
    echo "64-bit Arm: not run; there is no qemu-aarch64"
fi
