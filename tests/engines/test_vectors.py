"""The vectors of the native engine, compiled by themselves, do nothing that C++ leaves undefined."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sprachbund.engines import extension

NATIVE = Path(extension.__file__).parent / "native"
PROGRAM = r"""
#include <cmath>
#include <cstdio>

#include "vector.hpp"

int main() {
    const float all_kinds[] = {0, -1, -87, -100, -INFINITY, INFINITY, 90, 1e9f, 3e38f, -3e38f, NAN, -NAN};
    for (float x : all_kinds) {
        const F16 e = exponential(all(x)), g = gelu(all(x)), s = sigmoid(all(x));
        std::printf("%g %g %g %g\n", x, e[0], g[0], s[0]);
    }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_functions_of_numbers_are_defined_for_all_numbers(tmp_path: Path) -> None:
    (tmp_path / "program.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-Wno-psabi", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    compiled = subprocess.run(
        ["g++", *flags, f"-I{NATIVE}", str(tmp_path / "program.cpp"), "-o", str(tmp_path / "program")],
        capture_output=True,
        text=True,
    )
    if "ubsan" in compiled.stderr:
        pytest.skip("the compiler lacks its sanitizer")
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([str(tmp_path / "program")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    values = [[float(word) for word in line.split()] for line in ran.stdout.splitlines()]
    assert values[0] == [0, 1, 0, 0.5]
    assert values[1] == pytest.approx([-1, 0.367879, -0.158655, 0.268941], abs=1e-6)
