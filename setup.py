"""The compiled part of the package. All else about the package is in pyproject.toml.

It is built where there is a C++ compiler and left out where there is none: the package works without it, on torch, and
`sprachbund doctor` gives the reason that is noted here. Instruction sets are chosen in the sources and at run time, so
one build runs on every processor of its kind.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

NATIVE = Path("src/sprachbund/engines/native")
NANOBIND = Path(nanobind.include_dir()).parent
NOTE = "_native_missing.txt"  # beside the extension's place; engines/extension.py reads it
CODE_FLAGS = [
    "-ffp-contract=fast",  # GCC's default, for Clang too
    "-fno-math-errno",  # square roots and roundings as single instructions
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # nanobind asks for it
]
UNIX_FLAGS = [
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    *CODE_FLAGS,
    "-fvisibility=hidden",
    "-Wno-psabi",  # vectors are never passed between files
    "-g0",
]
# For clang-cl; it has -fvisibility=hidden by itself, and setuptools adds /O2 and /EHsc.
WINDOWS_FLAGS = ["/std:c++17", *(f"/clang:{flag}" for flag in CODE_FLAGS)]
# From Python 3.12 on, nanobind can do with the part of Python's interface that later versions keep: one build for all.
STABLE = sys.version_info >= (3, 12) and sys.implementation.name == "cpython"


def compile_in_parallel(
    compile_all: Callable[..., list[str]], sources: Sequence[str], **options: object
) -> list[str]:
    """Compile as many files at once as there are processors, the largest first; their object files.

    Args:
        compile_all: the compiler's own method, which compiles one file after another.
        sources: files.
        options: the method's other arguments.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        largest_first = sorted(sources, key=os.path.getsize, reverse=True)
        made = {source: pool.submit(compile_all, [source], **options) for source in largest_first}
        return [file for source in sources for file in made[source].result()]


class Build(build_ext):
    """Clang in place of Microsoft's compiler, and a note in the package where the extension was left out."""

    def build_extension(self, ext: Extension) -> None:
        """Build it, or note why not; setuptools goes on without an optional extension after the error."""
        note = Path(self.build_lib, "sprachbund", "engines", NOTE)
        note.unlink(missing_ok=True)
        try:
            if self.compiler.compiler_type == "msvc":
                self.compiler.initialize()
                self.compiler.cc = "clang-cl"  # Microsoft's own compiler has no vectors of GCC's kind
                ext.extra_compile_args = WINDOWS_FLAGS
            self.compiler.compile = partial(compile_in_parallel, self.compiler.compile)
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            reason = " ".join(str(error).split())
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(reason + "\n", encoding="utf-8")
            self.warn(f"sprachbund is built WITHOUT its native engine: {reason}")
            raise

    def copy_extensions_to_source(self) -> None:
        """For editable installations; the note goes there too."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "sprachbund", "engines", NOTE)
        beside = NATIVE.parent / NOTE
        beside.unlink(missing_ok=True)
        if built.exists():
            self.copy_file(str(built), str(beside))


setup(
    ext_modules=[
        Extension(
            "sprachbund.engines._native",
            sources=sorted(path.as_posix() for path in NATIVE.glob("*.cpp")),
            depends=sorted(path.as_posix() for path in NATIVE.iterdir() if path.suffix in (".hpp", ".inl")),
            include_dirs=[
                str(NANOBIND / "include"),
                str(NANOBIND / "src"),
                str(NANOBIND / "ext" / "robin_map" / "include"),
            ],
            define_macros=[("Py_LIMITED_API", "0x030C0000")] if STABLE else [],
            py_limited_api=STABLE,
            extra_compile_args=UNIX_FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp312"}} if STABLE else {},
)
