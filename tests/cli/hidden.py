"""Runs commands, each in a process of its own, where packages are hidden as if they were not installed.

`python -m tests.cli.hidden JOBS.json RESULTS.json` reads a list of `[arguments, hidden modules]` and writes one object
for each: its exit code, its lines on stderr, and which of the watched modules were looked for. A child is forked for
each, so that nothing but the core is imported when it begins.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULES = {
    "aiohttp": "aiohttp",
    "babel": "babel",
    "ctranslate2": "ctranslate2",
    "espeakng-loader": "espeakng_loader",
    "fastapi": "fastapi",
    "fastapi-swagger": "fastapi_swagger",
    "fsspec": "fsspec",
    "gcsfs": "gcsfs",
    "jiwer": "jiwer",
    "lhotse": "lhotse",
    "matplotlib": "matplotlib",
    "num2words": "num2words",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "peft": "peft",
    "prometheus-client": "prometheus_client",
    "py3langid": "py3langid",
    "pyarrow": "pyarrow",
    "python-multipart": "python_multipart multipart",
    "pyworld": "pyworld",
    "ray": "ray",
    "requests": "requests",
    "s3fs": "s3fs",
    "sacrebleu": "sacrebleu",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sentencex": "sentencex",
    "setuptools": "setuptools pkg_resources",
    "sounddevice": "sounddevice _sounddevice",
    "soundcard": "soundcard",
    "tensorboard": "tensorboard",
    "transformers": "transformers",
    "unbabel-comet": "comet",
    "urllib3": "urllib3",
    "uvicorn": "uvicorn",
    "wandb": "wandb",
    "websockets": "websockets",
    "wyoming": "wyoming",
}
"""Packages of the extras to their modules."""
_CORE = (
    "torch", "numpy", "safetensors", "safetensors.torch", "tokenizers", "sentencepiece", "yaml", "soundfile",
    "av", "soxr", "onnxruntime", "langcodes", "language_data", "pydantic", "sprachbund.cli",
)  # fmt: skip


class Blocker:
    """A finder of modules and packages that finds no hidden ones, and notes what is looked for."""

    def __init__(self, finder: Any, hidden: set[str], wanted: set[str]) -> None:
        self._finder, self._hidden, self._wanted = finder, hidden, wanted
        self._packages = {package for package, modules in MODULES.items() if hidden & set(modules.split())}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As the finder itself, which only says that there is no such module."""
        top = name.partition(".")[0]
        self._wanted.add(top)
        return None if top in self._hidden else self._finder.find_spec(name, path, target)

    def find_distributions(self, *context: Any) -> Iterable[Any]:
        """Metadata of installed packages."""
        if hasattr(self._finder, "find_distributions"):
            for actual in self._finder.find_distributions(*context):
                name = re.sub(r"[-_.]+", "-", str(actual.metadata["Name"])).lower()
                if name not in self._packages:
                    yield actual

    def invalidate_caches(self) -> None:
        """Of the finder."""
        with suppress(AttributeError):
            self._finder.invalidate_caches()


def run(arguments: list[str], hidden: set[str], result: Path, out: Path) -> None:
    """The child: write the result, and end."""
    code, wanted = 99, set[str]()
    err = result.with_suffix(".err")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    loaded = {module.partition(".")[0] for module in sys.modules}
    watched = {module for modules in MODULES.values() for module in modules.split()}
    assert not loaded & watched, loaded & watched
    with suppress(BaseException), open(err, "w", encoding="utf-8") as sys.stderr:
        os.dup2(sys.stderr.fileno(), 2)
        sys.meta_path[:] = [Blocker(finder, hidden, wanted) for finder in sys.meta_path]
        sys.path_importer_cache.clear()
        from sprachbund.cli import main

        code = main([argument.replace("OUT", str(out)) for argument in arguments])
    value = {"code": code, "err": err.read_text(encoding="utf-8"), "wanted": sorted(wanted & watched)}
    result.write_text(json.dumps(value), encoding="utf-8")


def main(jobs: str, results: str) -> None:
    """Run all jobs, as many at once as there are processors."""
    for module in _CORE:
        __import__(module)
    import torch

    torch.set_num_threads(1)
    todo = list(enumerate(json.loads(Path(jobs).read_text(encoding="utf-8"))))
    count, running, actual = len(todo), set[int](), []
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        while todo or running:
            while todo and len(running) < max(2, min(8, os.cpu_count() or 2)):
                number, (arguments, hidden) = todo.pop(0)
                child = os.fork()
                if not child:
                    with suppress(BaseException):
                        run(arguments, set(hidden), workdir / f"{number}.json", workdir / f"out{number}")
                    os._exit(0)
                running.add(child)
            child, _ = os.wait()
            running.discard(child)
        for number in range(count):
            path = workdir / f"{number}.json"
            actual.append(
                json.loads(path.read_text()) if path.exists() else {"code": 99, "err": "", "wanted": []}
            )
    Path(results).write_text(json.dumps(actual), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
