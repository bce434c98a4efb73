"""Every verb where packages of the extras are missing: one line names package and extra, and following it helps.

Each command of the table runs as it is, and once more for each package that it looked for, with that package hidden;
one that is never looked for cannot matter. Then the packages of all extras are hidden at once, as after
`pip install sprachbund`, and the advice of each error is followed until the command ends as it does with all of them.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import typer

from sprachbund.cli import build_app
from sprachbund.cli.console import error_line
from sprachbund.cli.doctor import NEEDED, PURPOSES
from sprachbund.util import extras
from tests.cli.hidden import MODULES

ROOT = Path(__file__).parents[2]
FIT = "--layer 1 --clusters 4 --unit-pieces 24 --text-pieces 30 --share 1 --n-init 1"
QUICK = "--data tones --limit 2 --rounds 1 --no-speech 0"
SETUP = (
    "data make phrasebook --edition tiny --out book --utterances 12 --heldout 3 --workers 1",
    "evaluate book/dev --model tiny --limit 2 --no-speech 1 --offline --out scores --threads 1",
    "share analyse tiny tones --out gradients.npz --utterances 4 --batch 1 --accumulate 2 --offline",
    "share plan gradients.npz --out plan.json",
    f"units fit tiny tones --out units {FIT}",
    "units encode units tones --out encoded",
)
"""What other commands read."""
COMMANDS = {
    "translate": [
        "translate talk.wav --to de --offline --out OUT --format srt",
        "translate talk.wav --to de --model tiny --no-guard --offline --json",
        "translate talk.wav --to es --model llm --no-guard --offline",
        "translate talk.wav --to en --from fr --model seamless --no-guard --offline",
        "translate talk.wav --to en --from es --model whisper --no-guard --offline",
        "translate talk.wav --to ko --from en --model tiny --then m2m --no-guard --offline",
    ],
    "transcribe": ["transcribe talk.wav --model tiny --table --offline"],
    "listen": ["listen talk.wav --fast --to de --model tiny --no-guard --offline"],
    "serve": [
        "serve --port 0 --model ./nowhere --offline",
        "serve --wyoming 0 --port 0 --model ./nowhere --offline",
    ],
    "models list": ["models list"],
    "models show": ["models show tiny"],
    "models download": ["models download nobody/nothing --offline"],
    "models check": ["models check tiny"],
    "models push": ["models push tiny nobody/nothing --dry-run"],
    "doctor": ["doctor --model tiny"],
    "bench": ["bench --model ./nowhere --offline"],
    "data show": ["data show book/dev"],
    "data check": ["data check book/dev"],
    "data overlap": ["data overlap book/dev book/train"],
    "data pack": ["data pack book/dev --out OUT"],
    "data export": ["data export book/dev --out OUT.jsonl"],
    "data prepare asterisk": ["data prepare asterisk --source tree --languages en,es --out OUT"],
    "data prepare folder": ["data prepare folder own --language en --licence CC0-1.0 --out OUT"],
    "data prepare tsv": ["data prepare tsv table.tsv --out OUT"],
    "data prepare csv": ["data prepare csv table.csv --out OUT"],
    "data prepare commonvoice": ["data prepare commonvoice voice/validated.tsv --language en --out OUT"],
    "data prepare kaldi": ["data prepare kaldi kaldi --language en --out OUT"],
    "data prepare lhotse": ["data prepare lhotse own.jsonl --language en --out OUT"],
    "data prepare nemo": ["data prepare nemo nemo.json --language en --out OUT"],
    "data prepare huggingface": [
        "data prepare huggingface ntuml/data --language zh --translation en=translation --out OUT"
    ],
    "data prepare ntuml2021": ["data prepare ntuml2021 ntuml --out OUT"],
    "data make phrasebook": [
        "data make phrasebook --edition tiny --out OUT --utterances 4 --heldout 3 --workers 1"
    ],
    "data make telephone": [
        "data make telephone --source tree --out OUT --languages en,es --workers 1 --utterances 5 --heldout 2"
        " --leave-out asterisk-es-allison"
    ],
    "data make sentences": ["data make sentences --source tree --composed 30 --out OUT"],
    "data make mixed": [
        "data make mixed --out OUT --workers 1 --utterances 4 --heldout 1 --mixed en+de --languages en,de"
    ],
    "data make outside": ["data make outside --out OUT --per-kind 1 --workers 1"],
    "train": ["train recipe.toml --out OUT --threads 1"],
    "recipe": [
        f"recipe {name} --size tiny --check" for name in ("discrete_units", "encoder_transfer", "code_switch")
    ],
    "convert": ["convert x.nemo --out OUT --language en --offline"],
    "export": ["export streaming --out OUT --offline"],
    "evaluate": ["evaluate book/dev --model tiny --limit 2 --no-speech 1 --offline --out OUT --threads 1"],
    "calibrate": ["calibrate book/dev --model tiny"],
    "compare": ["compare scores same=scores --draws 20"],
    "score": [
        "score hypotheses.txt references.txt --language de",
        "score hypotheses.txt references.txt --language de --metrics WER",
        "score scores",
    ],
    "latency": ["latency log.jsonl --references references.jsonl"],
    "report": ["report scores --out OUT.html"],
    "router": ["router talk.wav --model llm --to es --out OUT.png"],
    "replay": ["replay scores --offline"],
    "share analyse": [
        "share analyse tiny tones --out OUT.npz --utterances 4 --batch 1 --accumulate 2 --offline"
    ],
    "share headroom": [
        "share headroom tiny tones --dev more_tones --utterances 4 --held-out 4 --epochs 1 --seeds 1"
    ],
    "share plan": ["share plan gradients.npz --out OUT.json"],
    "share show": ["share show plan.json --out OUT.html"],
    "share apply": ["share apply tiny plan.json --out OUT --start svd --any-model"],
    "share diff": ["share diff plan.json plan.json"],
    "units fit": [f"units fit tiny tones --out OUT {FIT}"],
    "units encode": ["units encode units tones --out OUT"],
    "units show": ["units show units", "units show units encoded --out OUT.png"],
    "compress pseudo-label": [
        "compress pseudo-label tiny own --from en --to de --out OUT --min-log-probability -100"
    ],
    "compress prune": [f"compress prune three_layers --decoder 2 --out OUT {QUICK}"],
    "compress distil": [
        f"compress distil tiny tones --texts data --student tiny --to fr --out OUT --steps 1 {QUICK}"
        " --set training.num_workers=0"
    ],
    "compress quantize": [f"compress quantize three_layers --out OUT {QUICK}"],
    "study run": [
        'study run study.toml --data book --out OUT --set grid.languages=["de"] --set grid.hours=[0.002,0.004]'
    ],
    "study resume": ["study resume nowhere"],
    "study report": ["study report nowhere"],
    "study fit": ["study fit results.csv --figure OUT.svg --draws 100"],
}
"""Every verb with its smallest real work; OUT is a path of each run's own."""
_RECIPE = """
languages = ["en", "de"]
train = [{ path = "book/train" }]
dev = [{ path = "book/dev" }]
vocabulary_size = 100
[model]
width = 32
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
feed_forward_width = 32
[training]
steps = 1
precision = "no"
batch_s = 10
num_workers = 0
[card]
name = "small"
licence = "CC0-1.0"
"""
EVERY_TIME = {
    "translate talk.wav --to de --offline": None,
    "score hypotheses.txt references.txt --language de": "train",
    "study fit results.csv --draws 100": "train",
    "serve --port 0 --offline": "serve",
}
"""Commands that take seconds, with the extra that they name where all are missing; the others run with `-m long`."""
SLOW = ("export streaming --out OUT --offline",)
"""Commands that take a minute with all packages, and look for those of their extra before anything else."""
MODULE_NAMES = sorted(module for modules in MODULES.values() for module in modules.split())
ADVICE = re.compile(r"pip install '?sprachbund\[([\w-]+)\]")


def leaves(command: Any, context: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The paths of all commands that do something."""
    if not hasattr(command, "list_commands"):
        yield " ".join(path)
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        inner = child.context_class(child, info_name=name, parent=context)
        yield from leaves(child, inner, (*path, name))


def run(root: Path, jobs: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """What commands did with modules hidden: code, lines on stderr, and which modules they looked for."""
    (root / "jobs.json").write_text(json.dumps([(line.split(), list(hidden)) for line, hidden in jobs]))
    arguments = [sys.executable, "-m", "tests.cli.hidden", "jobs.json", "results.json"]
    path = f"{ROOT / 'src'}:{ROOT}"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(root / "home"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, cwd=root, env=env, check=True, timeout=1800)
    return json.loads((root / "results.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands read."""
    root = tmp_path_factory.mktemp("missing")
    _write_models(root)
    _write_few(root)
    _write_data(root)
    setup = [line.split() for line in SETUP]
    subprocess.run([sys.executable, "-c", _DRIVER, json.dumps(setup)], cwd=root, check=True, timeout=600)
    return root


_DRIVER = """
import json, sys
from sprachbund.cli import main
for arguments in json.loads(sys.argv[1]):
    if code := main(arguments):
        sys.exit(f"{code} from {arguments}")
"""


def _write_models(root: Path) -> None:
    from sprachbund.models.conformer import Conformer
    from sprachbund.models.io import save
    from tests.models.seamless.support import make_checkpoint
    from tests.models.speech_llm_support import make_model
    from tests.models.transducer_checkpoints import (
        made_model,
        nemo_config,
        nemo_weights,
        sentencepiece_model,
        write_nemo,
    )
    from tests.models.translation.support import make_checkpoint as make_translator
    from tests.models.whisper_support import make_directory
    from tests.stories.support import write_tiny_model
    from tests.streaming.test_by_frames import tiny_transducer
    from tests.training import made

    write_tiny_model(root / "tiny")
    base = made.make_model()
    three = base.config.model_copy(update={"num_decoder_layers": 3})
    save(Conformer(three, base.tokenizer, base.transcript_tokenizer), root / "three_layers")
    save(tiny_transducer(), root / "streaming")
    save(make_model(), root / "llm")
    make_directory(root / "whisper")
    make_translator(root / "m2m", "m2m_100")
    make_checkpoint(root / "seamless", "seamless_m4t_v2")
    nemo = made_model()
    write_nemo(root / "x.nemo", nemo_config(nemo), nemo_weights(nemo), sentencepiece_model())


def _write_few(root: Path) -> None:
    """What the commands of `EVERY_TIME` read."""
    from tests.research.encoder_transfer.made import TIERS, rows, write
    from tests.stories.support import speech, write_wav

    write_wav(root / "talk.wav", speech())
    write(root / "results.csv", list(rows(5, noise=0.1, tiers=TIERS, bits=(32, 4))))
    (root / "hypotheses.txt").write_text("Guten Tag.\n", encoding="utf-8")
    (root / "references.txt").write_text("Guten Abend.\n", encoding="utf-8")


def _write_data(root: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    from sprachbund.corpora.asterisk.packages import SPEAKERS
    from sprachbund.research import size_file
    from tests.corpora.asterisk_tree import write_tree
    from tests.evaluation.made_talks import write_lines
    from tests.evaluation.test_emissions import LOG, REFERENCE
    from tests.stories.support import speech, write_wav
    from tests.stories.test_telephone import WORDING, texts
    from tests.units.made import write_corpus

    write_corpus(root / "tones")
    write_corpus(root / "more_tones")
    (root / "recipe.toml").write_text(_RECIPE)
    study = size_file("encoder_transfer", "tiny")
    (root / "study.toml").write_text(study.read_text())
    write_lines(root / "log.jsonl", LOG)
    write_lines(root / "references.jsonl", REFERENCE)
    (root / "own").mkdir()
    for name in ("one", "two"):
        write_wav(root / "own" / f"{name}.wav", speech(name))
        (root / "own" / f"{name}.txt").write_text(f"{name}.")
    (root / "table.tsv").write_text("path\tlanguage\ttext\ntalk.wav\ten\tGood morning.\n", encoding="utf-8")
    (root / "table.csv").write_text("path,language,text\ntalk.wav,en,Good morning.\n", encoding="utf-8")
    (root / "voice" / "clips").mkdir(parents=True)
    write_wav(root / "voice" / "clips" / "one.wav", speech("one"))
    (root / "voice" / "validated.tsv").write_text("path\tsentence\none.wav\tone\n")
    (root / "kaldi").mkdir()
    (root / "kaldi" / "wav.scp").write_text("talk talk.wav\n")
    (root / "kaldi" / "text").write_text("talk Good morning.\n")
    recording = {"sources": [{"type": "file", "source": "own/one.wav", "channels": [0]}]}
    cut = {"id": "c", "start": 0.0, "duration": 0.3, "channel": 0, "recording": recording}
    (root / "own.jsonl").write_text(json.dumps({**cut, "supervisions": [{"text": "one."}]}) + "\n")
    (root / "nemo.json").write_text('{"audio_filepath": "talk.wav", "text": "Good morning."}\n')
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out}
    write_tree(root / "tree", folders, {tag: texts(tag) for tag in WORDING})
    (root / "ntuml" / "data").mkdir(parents=True)
    sound = {"bytes": (root / "talk.wav").read_bytes(), "path": "a.wav"}
    row = {"audio": sound, "transcription": "好", "translation": "good", "file": "a.wav"}
    for split in ("train", "dev", "test"):
        path = root / "ntuml" / "data" / f"{split}-00000-of-00001-abc.parquet"
        parquet.write_table(arrow.Table.from_pylist([row]), path)


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, dict[str, Any]]:
    """Every command with all packages."""
    lines = [line for commands in COMMANDS.values() for line in commands if line not in SLOW]
    return dict(zip(lines, run(root, [(line, ()) for line in lines]), strict=True))


def as_advised(line: str, hidden: Sequence[str], done: dict[str, Any]) -> str:
    """The extra that the one line of an error names; it brings a hidden package that the line names, too."""
    errors = [one for one in done["err"].splitlines() if one.startswith("sprachbund: error:")]
    case = f"{line} without {' '.join(hidden)}: {done['code']} {done['err']}"
    assert done["code"] in (1, 2), case
    assert len(errors) == 1, case
    assert "unexpected" not in errors[0], case
    assert "Traceback" not in done["err"], case
    result = ADVICE.search(errors[0])
    assert result, case
    packages = [one for one, modules in MODULES.items() if set(modules.split()) & set(hidden)]
    names = [
        n for one in packages for n in (one, *MODULES[one].split(), *("COMET",) * (one == "unbabel-comet"))
    ]
    assert any(name.lower() in errors[0].lower() for name in names), case
    assert set(packages) & set(asked_for()[result[1]]), case
    return result[1]


def asked_for() -> dict[str, set[str]]:
    """Extra to its packages, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {
        extra: [re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines]  # type: ignore[index]
        for extra, lines in project.items()
    }
    return {
        extra: {*packages, *(names["serve"] if extra in ("ray", "wyoming") else ())}
        for extra, packages in names.items()
    }


def test_every_package_of_an_extra_is_hidden() -> None:
    packages = {one for extra, some in asked_for().items() if extra not in ("dev", "docs") for one in some}
    assert packages - {"sprachbund"} == set(MODULES)


def test_every_verb_is_in_the_table() -> None:
    command = typer.main.get_command(build_app())
    every = set(leaves(command, command.context_class(command, info_name="sprachbund")))
    assert every <= COMMANDS.keys()
    assert all(line.startswith(verb) for verb, lines in COMMANDS.items() for line in lines)


@pytest.mark.long
def test_no_package_alone_is_unexpected(root: Path, whole: dict[str, dict[str, Any]]) -> None:
    alone = [
        (line, modules.split())
        for line, done in whole.items()
        for modules in MODULES.values()
        if set(modules.split()) & set(done["wanted"])
    ]
    for (line, hidden), done in zip(alone, run(root, alone), strict=True):
        if done["code"] != whole[line]["code"] or "pip install" in done["err"]:
            as_advised(line, hidden, done)


@pytest.mark.long
def test_what_each_error_advises_is_enough(root: Path, whole: dict[str, dict[str, Any]]) -> None:
    installed: dict[str, list[str]] = {line: [] for line in whole}
    left = list(whole)
    for _ in range(4):
        jobs = []
        for line in left:
            there = {package for extra in installed[line] for package in asked_for()[extra]}
            jobs.append(
                (line, [m for one, modules in MODULES.items() if one not in there for m in modules.split()])
            )
        left = []
        for (line, hidden), done in zip(jobs, run(root, jobs), strict=True):
            if done["code"] == whole[line]["code"] and not ADVICE.search(done["err"]):
                continue
            extra = as_advised(line, hidden, done)
            assert extra not in installed[line], (line, extra, done["err"])
            installed[line].append(extra)
            left.append(line)
    assert not left
    assert not installed[COMMANDS["translate"][0]]  # the main job needs no extra
    assert whole["doctor --model tiny"]["code"] == 0
    assert not installed["doctor --model tiny"]  # a plain install is well
    assert installed["share plan gradients.npz --out OUT.json"] == ["train"]


@pytest.mark.long
@pytest.mark.parametrize("line", SLOW)
def test_what_takes_long_looks_for_packages_first(root: Path, line: str) -> None:
    [done] = run(root, [(line, MODULE_NAMES)])
    assert as_advised(line, MODULE_NAMES, done) == "onnx"


HELP = [f"{verb} --help" for verb in COMMANDS]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What commands do after a plain install."""
    root, lines = tmp_path_factory.mktemp("plain"), [*EVERY_TIME, *HELP]
    _write_few(root)
    return dict(zip(lines, run(root, [(line, MODULE_NAMES) for line in lines]), strict=True))


@pytest.mark.slow
def test_after_a_plain_install_one_line_names_the_extra(plain: dict[str, dict[str, Any]]) -> None:
    for line, extra in EVERY_TIME.items():
        if extra is None:
            assert plain[line]["code"] == 0, plain[line]
        else:
            assert as_advised(line, MODULE_NAMES, plain[line]) == extra


@pytest.mark.slow
def test_help_of_every_verb_needs_no_extra(plain: dict[str, dict[str, Any]]) -> None:
    for line in HELP:
        assert (plain[line]["code"], plain[line]["err"]) == (0, ""), line


def test_doctor_knows_a_purpose_of_every_extra() -> None:
    assert PURPOSES.keys() == {name for name in extras.extras() if name} - {*extras.DEVELOPERS}


def test_doctor_looks_for_the_packages_of_a_plain_install() -> None:
    looked_for = {extras.package_of(module.partition(".")[0]) for module in NEEDED}
    assert looked_for == set(extras.extras()[extras.BASE])


def test_packages_of_the_core_and_of_nobody_are_named_themselves() -> None:
    line = error_line(ModuleNotFoundError("No module named 'yaml.nodes'", name="yaml.nodes"))
    assert line == "the package pyyaml is not installed; run: pip install pyyaml"
    line = error_line(ModuleNotFoundError("No module named 'sprachbund.nothing'", name="sprachbund.nothing"))
    assert line.startswith("unexpected ModuleNotFoundError")
    assert error_line(ImportError("cannot import name 'x'", name="yaml")).startswith("unexpected ImportError")
    assert error_line(ModuleNotFoundError("No module named 'scipy'")) == (
        "the package scipy is not installed; run: pip install 'sprachbund[train]'"
    )


def test_what_a_library_lacks_comes_with_the_extra_of_the_library() -> None:
    code = compile("raise ModuleNotFoundError(\"No module named 'joblib'\", name='joblib')", "x", "exec")
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(code, {"__name__": "sklearn.cluster"})
    line = error_line(caught.value)
    assert line == "the package joblib is not installed; run: pip install 'sprachbund[train]'"


@pytest.mark.parametrize(
    ("module", "importer", "extra"),
    [
        ("scipy", "sprachbund.models.speech_llm.objective", "speech-llm"),
        ("scipy", "sprachbund.research.gradient_sharing.analyses", "train"),
        ("transformers", "sprachbund.models.speech_llm.checkpoints", "speech-llm"),
        ("transformers", "sprachbund.models.seamless.checkpoints", "seamless"),
        ("transformers", "sprachbund.models.whisper.files", "seamless"),
        ("fastapi", "sprachbund.serving.app", "serve"),
        ("starlette", "sprachbund.serving.app", "serve"),
        ("pkg_resources", "torchmetrics", "comet"),
        ("ray", "sprachbund.util.jobs", "ray"),
    ],
)
def test_the_extra_fits_the_code_that_lacks_it(module: str, importer: str, extra: str) -> None:
    code = compile(f"raise ModuleNotFoundError('No module', name={module!r})", "x", "exec")
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(code, {"__name__": importer})
    assert error_line(caught.value).endswith(f"pip install 'sprachbund[{extra}]'")


def test_sources_that_were_never_installed_read_their_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = dict(extras.extras())

    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", not_installed)
    extras.extras.cache_clear()
    try:
        own = extras.extras()
        assert {extra: set(packages) for extra, packages in own.items() if extra != "dev"} == {
            extra: set(packages) for extra, packages in installed.items() if extra != "dev"
        }
        line = error_line(ModuleNotFoundError("No module named 'sklearn'", name="sklearn"))
        assert line == "the package scikit-learn is not installed; run: pip install 'sprachbund[train]'"
        monkeypatch.setattr(extras, "__file__", "/nowhere/lib/sprachbund/util/extras.py")
        extras.extras.cache_clear()
        line = error_line(ModuleNotFoundError("No module named 'peft'", name="peft"))
        assert line == "the package peft is not installed; run: pip install peft"
    finally:
        extras.extras.cache_clear()


def test_every_import_of_the_package_is_declared() -> None:
    """Whatever any file imports is of the standard library, of the core, of an extra, or brought by one."""
    # simuleval's users start it themselves: it imports this package. pico is asked for by name, as festival is.
    undeclared = {"simuleval", "py_nanotts"}
    known = {package for packages in extras.extras().values() for package in packages}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} - undeclared:
                if top in sys.stdlib_module_names or top == "sprachbund":
                    continue
                assert extras.package_of(top) in known, (path, top)
