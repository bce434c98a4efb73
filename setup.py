"""The compiled part of the package. All else about the package is in pyproject.toml.

It is built where there is a C++ compiler and left out where there is none: the package works without it, on torch.
Instruction sets are chosen in the sources and at run time, so one build runs on every processor of its kind.
"""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/sprachbund/engines/native")
FLAGS = [
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-fno-math-errno",  # square roots and roundings as single instructions
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # nanobind asks for it
    "-fvisibility=hidden",
    "-Wno-psabi",  # vectors are never passed between files
    "-g0",
]


def extensions() -> list[Extension]:
    """The module, if nanobind is there; it always is in pip's own build environment."""
    try:
        import nanobind
    except ImportError:
        return []
    home = Path(nanobind.include_dir()).parent
    return [
        Extension(
            "sprachbund.engines._native",
            sources=sorted(map(str, NATIVE.glob("*.cpp"))),
            depends=sorted(str(path) for path in NATIVE.iterdir() if path.suffix in (".hpp", ".inl")),
            include_dirs=[
                str(home / "include"),
                str(home / "src"),
                str(home / "ext" / "robin_map" / "include"),
            ],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=extensions())
