"""A package that an extra brings and that is not there: one line that names both."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from sprachbund.cli.console import error_line
from sprachbund.models.io import save
from sprachbund.util import extras
from tests.research.encoder_transfer.made import TIERS, rows, write
from tests.stories.support import speech, write_tiny_model, write_wav
from tests.streaming.test_by_frames import tiny_transducer
from tests.units.made import write_corpus

SCORE = "score hypotheses.txt references.txt --language de"
STUDY = "study fit results.csv --figure law.svg --draws 100"
UNITS = "units fit tiny tones --out units --layer 1 --clusters 4 --unit-pieces 24 --text-pieces 30 --share 1 --n-init 1"
NEEDS = [
    ("sacrebleu", "train", SCORE),
    ("jiwer", "train", f"{SCORE} --metrics WER"),
    ("babel", "train", "data make phrasebook --edition tiny --out book"),
    ("num2words", "train", SCORE),
    ("scipy", "train", STUDY),
    ("matplotlib", "train", STUDY),
    ("sklearn", "train", UNITS),
    ("accelerate", "train", "train recipe.toml --out run"),
    ("tensorboard", "train", "train recipe.toml --out run"),
    ("onnx", "onnx", "export streaming --out graphs"),
    ("fastapi", "serve", "serve --port 0 --model tiny"),
    ("uvicorn", "serve", "serve --port 0 --model tiny"),
]
DRIVER = """
import json, os, sys
from contextlib import suppress
import torch
from sprachbund.cli import main

class Hidden:
    def __init__(self, module):
        self.module = module
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

torch.set_num_threads(1)
for number, (module, command) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()  # each case begins with nothing but torch imported
    if not child:
        code = 99
        with suppress(BaseException), open(f"{number}.err", "w", encoding="utf-8") as sys.stderr:
            assert module not in sys.modules
            sys.meta_path.insert(0, Hidden(module))
            code = main(command.split())
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(f"{number}.code", "w", encoding="utf-8") as file:
        file.write(str(code))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("missing")
    write_tiny_model(place / "tiny")
    save(tiny_transducer(), place / "streaming")
    write_wav(place / "talk.wav", speech())
    write_corpus(place / "tones")
    write(place / "results.csv", list(rows(5, noise=0.1, tiers=TIERS, bits=(32, 4))))
    (place / "hypotheses.txt").write_text("Guten Tag.\n", encoding="utf-8")
    (place / "references.txt").write_text("Guten Abend.\n", encoding="utf-8")
    (place / "recipe.toml").write_text('languages = ["en"]\ntrain = [{ path = "tones" }]\n', encoding="utf-8")
    cases = json.dumps([(module, command) for module, _, command in NEEDS])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", DRIVER, cases], cwd=place, env=env, check=True, timeout=200)
    return place


@pytest.mark.parametrize("number", range(len(NEEDS)), ids=[f"{module}" for module, _, _ in NEEDS])
def test_the_extra_is_named(place: Path, number: int) -> None:
    module, extra, _ = NEEDS[number]
    said = (place / f"{number}.err").read_text(encoding="utf-8").splitlines()
    said = [line for line in said if "k-means sees" not in line]
    assert (place / f"{number}.code").read_text() in ("1", "2")
    assert len(said) == 1, said
    assert f"pip install 'sprachbund[{extra}]'" in said[0]
    assert {"sklearn": "scikit-learn"}.get(module, module) in said[0]


def test_packages_of_the_core_and_of_nobody_are_named_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    line = error_line(ModuleNotFoundError("No module named 'yaml.nodes'", name="yaml.nodes"))
    assert line == "the package pyyaml is not installed; run: pip install pyyaml"
    line = error_line(ModuleNotFoundError("No module named 'sprachbund.nothing'", name="sprachbund.nothing"))
    assert line.startswith("unexpected ModuleNotFoundError")
    assert error_line(ImportError("cannot import name 'x'", name="yaml")).startswith("unexpected ImportError")

    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", not_installed)
    line = error_line(ModuleNotFoundError("No module named 'peft'", name="peft"))
    assert line == "the package peft is not installed; run: pip install peft"
