"""Each verb end to end, on data made here."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import sprachbund
from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.models import FAMILIES
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.conformer import io as conformer
from sprachbund.models.conformer.extension import add_languages
from tests.corpora.asterisk_tree import write_tree
from tests.models.whisper_support import make_directory
from tests.stories.support import LANGUAGES, command

RECIPE = """
languages = ["en", "de"]
train = [{ path = "book/train" }]
dev = [{ path = "book/dev" }]
vocabulary_size = 120

[model]
width = 32
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
feed_forward_width = 32

[training]
steps = 4
precision = "no"
batch_s = 20
num_workers = 0
log_every = 1
evaluate_every = 4
save_every = 2

[card]
name = "story"
licence = "CC0-1.0"
"""


def translated(tiny_model: Path, talk: Path, *more: str | Path):
    ran = command("translate", talk, "--model", tiny_model, "--no-guard", *more)
    assert (ran.code, ran.err) == (0, "")
    return ran.out


def test_a_folder_without_formats_is_refused(tiny_model: Path, talk: Path) -> None:
    ran = command("translate", talk, "--to", "de", "--model", tiny_model, "--out", "deep")
    assert ran.code != 0
    assert "--out deep is the folder of the files of --format; give --format too" in ran.err
    assert not Path("deep").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--overwrite",),
            "--overwrite is for the files of --format, and none are written; give --format too",
        ),
        (("--overwrite", "--json"), "--overwrite is for the files of --format, and none are written"),
        (
            ("--words",),
            "--words are shown in --json, and in the files of --format srt, vtt, json, jsonl; add one",
        ),
        (("--words", "--format", "txt,tsv"), "--words are shown in --json, and in the files of"),
    ],
)
def test_options_of_files_that_are_not_written(
    tiny_model: Path, talk: Path, here: Path, more: tuple[str, ...], said: str
) -> None:
    ran = command("translate", talk, "--to", "de", "--model", tiny_model, *more)
    assert (ran.code, ran.out, len(ran.error_lines)) == (2, "", 1)
    assert said in ran.err
    assert not list(here.glob("talk.de.*"))


def test_segments_are_printed_with_times_and_languages(tiny_model: Path, talk: Path) -> None:
    assert re.fullmatch(r"\[0\.3 → 2\.3\] \S.*\n", translated(tiny_model, talk, "--to", "de"))
    lines = translated(tiny_model, talk, "--to", "German", "--to", "fr,de").splitlines()
    assert [re.match(r"\[0\.3 → 2\.3\] (\w\w) ", line)[1] for line in lines] == ["de", "fr"]


def test_json_is_what_python_gives(tiny_model: Path, talk: Path) -> None:
    torch.set_num_threads(1)  # no note of more threads than cores
    options = sprachbund.DecodingOptions(
        guard=sprachbund.DecodingOptions().guard.__class__(enabled=False), word_timestamps=True, beam_size=2
    )
    exact = ("--engine", "torch")
    result = sprachbund.load(tiny_model, engine="torch").translate(talk, to="de", options=options)
    out = translated(tiny_model, talk, "--to", "de", "--json", "--words", "--beam", "2", *exact)
    printed = json.loads(out)
    engine = printed.pop("engine")
    assert (engine["name"], engine["why"]) == ("torch", "it was asked for")
    assert set(engine["parts"].values()) == {"torch, fp32"}
    assert printed.pop("file") == str(talk)
    assert printed.pop("translations") == {"de": result.to_dict()}
    assert printed == json.loads(result.to_json())
    assert printed["segments"][0]["words"]
    several = json.loads(translated(tiny_model, talk, "--to", "de,fr", "--json"))
    assert several.keys() == {"file", "engine", "translations"}
    assert several["engine"]["why"]
    assert list(several["translations"]) == ["de", "fr"]


def test_every_format_is_written_and_parses(tiny_model: Path, talk: Path, here: Path) -> None:
    formats = ("txt", "srt", "vtt", "json", "jsonl", "tsv")
    out = translated(tiny_model, talk, "--to", "de,en", "--format", ",".join(formats), "--out", "deep/er")
    names = [f"deep/er/talk.{tag}.{name}" for tag in ("de", "en") for name in formats]
    assert out.splitlines() == names
    assert sorted(str(path) for path in Path("deep/er").iterdir()) == sorted(names)
    whole = json.loads(Path("deep/er/talk.de.json").read_text())
    text, spoken = whole["text"], whole["source_language"]
    assert Path("deep/er/talk.de.txt").read_text().strip() == text
    assert json.loads(Path("deep/er/talk.de.jsonl").read_text())["text"] == text
    assert Path("deep/er/talk.de.tsv").read_text().splitlines()[1].split("\t")[2:] == [spoken, "de", text]
    cue = r"1\n00:00:00[,.]312 --> 00:00:02[,.]344\n(?:.+\n)+\n"
    assert re.fullmatch(cue, Path("deep/er/talk.de.srt").read_text())
    assert re.fullmatch("WEBVTT\n\n" + cue, Path("deep/er/talk.de.vtt").read_text())


def test_transcribe_writes_the_language_spoken(tiny_model: Path, talk: Path, here: Path) -> None:
    ran = command("transcribe", talk, "--from", "fr", "--model", tiny_model, "--no-guard", "--json")
    segment = json.loads(ran.out)["segments"][0]
    assert (segment["source_language"], segment["target_language"]) == ("fr", "fr")
    assert command("transcribe", talk, "--model", tiny_model, "--no-guard", "--format", "txt").code == 0
    assert Path("talk.txt").read_text().strip()


def test_stdin_through_a_pipe(tiny_model: Path, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end, os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        feeding = threading.Thread(target=lambda: (end.write(talk.read_bytes()), end.close()))
        feeding.start()
        ran = command("translate", "-", "--to", "de", "--no-guard", "--model", tiny_model)
        feeding.join()
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == translated(tiny_model, talk, "--to", "de")


def test_json_with_files_prints_nothing_else(tiny_model: Path, talk: Path, here: Path) -> None:
    out = translated(tiny_model, talk, "--to", "de", "--json", "--format", "txt")
    assert Path("talk.de.txt").read_text().strip() == json.loads(out)["text"]


def test_guard_keeps_a_loop_silent(tiny_model: Path, talk: Path, here: Path) -> None:
    model = conformer.load(tiny_model)
    with torch.no_grad():
        model.decoder.positions.zero_()  # a decoder that does not know where it is says one thing for ever
    conformer.save(model, here / "loop")
    ran = command("translate", talk, "--to", "de", "--model", "loop")
    assert (ran.code, ran.out) == (0, "")
    said = "1 of 1 segments dropped by the guard (loop): 0.3 to 2.3 s"
    assert f"{said}; --json shows the text\n" in ran.err
    as_json = command("translate", talk, "--to", "de", "--model", "loop", "--json")
    assert f"{said}\n" in as_json.err
    assert json.loads(as_json.out)["translations"]["de"]["dropped"][0]["text"]
    kept = command("translate", talk, "--to", "de", "--model", "loop", "--no-guard")
    assert (kept.code, kept.err) == (0, "")
    assert kept.out.startswith("[0.3 → 2.3] ")


def test_models_lists_what_is_here(tiny_model: Path, here: Path) -> None:
    ran = command("models", "show", tiny_model, "--json")
    model = json.loads(ran.out)
    assert ran.code == 0
    assert (model["name"], model["family"], model["bits"], model["licence"]) == (
        "tiny",
        "conformer",
        8,
        "CC0-1.0",
    )
    assert [tuple(pair) for pair in model["pairs"]] == [(s, t) for s in LANGUAGES for t in LANGUAGES]
    assert not model["pairs_recorded"]
    Path("mine").symlink_to(tiny_model)
    ran = command("models", "show", "--pairs")
    assert "mine\n  is         tiny: conformer, 8 bits" in ran.out
    assert "de-de, de-en, de-fr, en-de" in ran.out
    assert ran.out.count("taught     no record of the pairs in its training data") == 1
    ran = command("models", "show", here)
    assert ran.code == 1
    assert "broken" in ran.out


def test_models_shows_the_pairs_that_a_model_was_taught(tiny_model: Path, here: Path) -> None:
    bundled = json.loads(command("models", "show", "bundled", "--json").out)
    languages = ["de", "en", "es", "fr", "it", "ru"]
    assert bundled["pairs"] == [[source, target] for source in languages for target in languages]
    assert bundled["pairs_recorded"]
    shutil.copytree(tiny_model, "mine")
    card = Card.read(Path("mine"))
    assert card is not None
    card.training[PAIRS] = [["en", "de"], ["fr", "fr"], ["it", "de"]]  # the last one it does not take
    card.write(Path("mine"))
    ran = command("models", "show", "mine", "--pairs").out
    assert "  hears      en, fr\n  writes     de, fr\n  pairs      en-de, fr-fr\n" in ran
    assert "taught" not in ran
    assert "1 of translation (into de), 1 of transcription" in command("models", "show", "mine").out


def test_models_counts_transcripts_of_mixed_speech_apart(tiny_model: Path, here: Path) -> None:
    conformer.save(add_languages(conformer.load(tiny_model), {"mul": "mean"}), Path("mixing"))
    shown = command("models", "show", "mixing").out
    assert "any to any: 6 of translation, 3 of transcription, 3 of transcription of mixed speech" in shown


def test_models_finds_whisper_models_downloaded_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(here / "cache"))
    repo = here / "cache" / "models--someone--whisper-mini"
    make_directory(repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    other = here / "cache" / "models--someone--bert" / "snapshots" / "def456"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "bert"}')
    models = {m["model"]: m for m in map(json.loads, command("models", "show", "--json").out.splitlines())}
    assert models.keys() == {"bundled", "bundled-streaming", "someone/whisper-mini"}
    assert ["fr", "en"] in models["someone/whisper-mini"]["pairs"]
    assert ["en", "fr"] not in models["someone/whisper-mini"]["pairs"]


def test_models_lists_downloads_of_every_family(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(here / "cache"))
    for name in FAMILIES:
        key = "family" if name in ("conformer", "speech_llm") else "model_type"
        snapshot = here / "cache" / f"models--someone--{name}" / "snapshots" / "abc123"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({key: name}))
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps({key: name}))
    listed = [json.loads(line) for line in command("models", "list", "--json").out.splitlines()]
    families = {one["model"]: one["family"] for one in listed if "directory" in one}
    assert families.keys() >= {f"someone/{name}" for name in FAMILIES} | set(FAMILIES)
    assert all(families[name] == families[f"someone/{name}"] == name for name in FAMILIES)


def test_doctor_names_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.cli.doctor.NEEDED", ("numpy", "no_such_library"))
    ran = command("doctor")
    assert ran.code == 1
    assert "mend it with: pip install no-such-library" in ran.out


def test_doctor_tries_everything_and_finds_a_broken_model(tiny_model: Path, here: Path) -> None:
    ran = command("doctor", "--model", tiny_model, "--json")
    checks = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert ran.code == 0
    assert {
        "Python",
        "libraries",
        "processor",
        "audio",
        "voice activity",
        f"model {tiny_model}",
    } <= checks.keys()
    (here / "broken").mkdir()
    ran = command("doctor", "--model", "broken")
    assert ran.code == 1
    assert re.search(r"PROBLEM  model broken .* has no config.json", ran.out)
    assert "mend it with" in ran.out
    assert ran.out.endswith("\n1 problem\n")


@pytest.mark.slow
def test_from_phrasebook_to_translation(here: Path, talk: Path) -> None:
    making = ("data", "make", "phrasebook", "--edition", "tiny", "--out", "book", "--utterances")
    ran = command(*making, "24", "--heldout", "3", "--workers", "1")
    assert ran.code == 0, ran.err
    assert [line.split()[:2] for line in ran.out.splitlines()[1:]] == [
        ["book/dev", "6"],
        ["book/test", "6"],
        ["book/train", "24"],
    ]
    other = command(*making, "25")
    assert other.code == 2
    assert "book was begun with train_utterances 24, not 25" in other.err
    # A corpus that was made before there were other microphones is the same corpus.
    made = json.loads((here / "book" / "made.json").read_text())
    del made["augmentation"]["tone_probability"], made["augmentation"]["tone_db"]
    (here / "book" / "made.json").write_text(json.dumps(made))
    assert command(*making, "24", "--heldout", "3", "--workers", "1").code == 0

    shown = command("data", "show", "book/dev", "--json")
    corpus = json.loads(shown.out)
    assert corpus["per_language"].keys() == {"en", "de"}
    assert (corpus["utterances"], corpus["licence"], len(corpus["examples"])) == (6, "CC0-1.0", 5)
    assert command("data", "show", "book").out.count("language  utterances  hours") == 3

    Path("recipe.toml").write_text(RECIPE)
    stopped = command("train", "recipe.toml", "--out", "run", "--stop-after", "2", "--threads", "1")
    assert stopped.code == 0, stopped.err
    assert "step 2/4" in stopped.out
    assert "step 3/4" not in stopped.out
    ended = command("train", "recipe.toml", "--out", "run")
    assert "resumed at step 2" in ended.out
    assert "step 4/4" in ended.out
    assert (
        json.loads(command("models", "show", "run/model", "--json").out)["data"][0]["name"]
        == "phrasebook/tiny/train"
    )
    ran = command("translate", talk, "--to", "de,en", "--model", "run/model", "--no-guard", "--format", "srt")
    assert ran.code == 0, ran.err
    assert Path("talk.en.srt").exists()


def test_prepare_folder_and_table_and_train_on_them(talk: Path, here: Path) -> None:
    for number, text in enumerate(("One.", "Good morning.", "Night.", "How are you?", "Thanks.", "No.")):
        Path("own").mkdir(exist_ok=True)
        Path(f"own/{number}.wav").write_bytes(talk.read_bytes())
        Path(f"own/{number}.txt").write_text(text)
        Path(f"own/{number}.de.txt").write_text(f"Deutsch {number}")
    Path("own/stray.txt").write_text("belongs to nothing")
    prepare = ("data", "prepare", "folder", "own", "--language", "English", "--licence", "CC0-1.0")
    ran = command(*prepare, "--out", "corpus")
    assert (ran.code, len(ran.error_lines)) == (1, 1)
    assert "own/stray.txt: belongs to no audio file" in ran.err
    assert not Path("corpus").exists()
    ran = command(*prepare, "--out", "corpus", "--skip-bad", "--dev-share", "0.5")
    assert ran.code == 0
    assert "1 skipped; they are listed in corpus/skipped.tsv" in ran.err
    assert "corpus/train" in ran.out
    Path("own/table.tsv").write_text("path\tlanguage\ttext\tde\n0.wav\ten\tGood morning.\tGuten Morgen.\n")
    ran = command("data", "prepare", "tsv", "own/table.tsv", "--out", "tabled", "--json")
    assert json.loads(ran.out) == {"utterances": {"": 1}, "skipped": [], "clipped": 0, "unchecked": 0}
    assert "de    Guten Morgen." in command("data", "show", "tabled").out
    Path("recipe.toml").write_text(RECIPE.replace("book/", "corpus/").replace("= 120", "= 60"))
    ran = command("train", "recipe.toml", "--out", "run", "--set", "training.steps=2", "--threads", "1")
    assert ran.code == 0, ran.err
    card = json.loads(Path("run/model/card.json").read_text())
    assert card["data"][0] == {
        "name": "own/train",
        "licence": "CC0-1.0",
        "attribution": "",
        "hours": 0.001,
    } | {
        "utterances": card["data"][0]["utterances"],
        "hours": card["data"][0]["hours"],
    }


def test_prepare_asterisk(here: Path) -> None:
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out}
    names = [f"prompt-{n}" for n in range(12)]
    wording = {"en": "Please press number", "es": "Por favor pulse el número"}
    texts = {tag: {name: f"{words} {name[7:]} now" for name in names} for tag, words in wording.items()}
    write_tree(Path("tree"), folders, texts)
    ran = command(
        "data", "prepare", "asterisk", "--source", "tree", "--languages", "en,es", "--out", "prompts"
    )
    assert ran.code == 0, ran.err
    shown = command("data", "show", "prompts", "--json").out.splitlines()
    corpora = [json.loads(line) for line in shown]
    assert sum(corpus["utterances"] for corpus in corpora) == 24
    assert {tag for corpus in corpora for tag in corpus["per_language"]} == {"en", "es"}


def test_train_names_a_mistake_in_the_recipe(here: Path) -> None:
    Path("recipe.toml").write_text(RECIPE)
    ran = command("train", "recipe.toml", "--out", "run", "--set", "training.stps=5")
    assert (ran.code, ran.out) == (2, "")
    assert "unknown key training.stps; did you mean training.steps?" in ran.err
    assert not Path("run").exists()


def test_help_and_version_are_quick() -> None:
    assert command("--version").out == f"sprachbund {sprachbund.__version__}\n"
    assert command("--help").code == 0
    assert command("translate", "--help").code == 0
    assert command().code == 2
    began = time.monotonic()
    code = "import sprachbund, sys; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - began < 5.0  # no number to hold on a busy machine; what is imported decides


def test_debug_shows_the_traceback(tiny_model: Path, here: Path) -> None:
    arguments = ("translate", "gone.wav", "--to", "de", "--model", tiny_model)
    assert "Traceback" in command(*arguments, "--debug").err
    assert "Traceback" in command("--debug", *arguments).err
    assert "Traceback" not in command(*arguments).err


def test_unforeseen_error_is_one_line(tiny_model: Path, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("nobody\nexpected this")

    monkeypatch.setattr("sprachbund.api.Model.stream", fail)
    ran = command("translate", talk, "--to", "de", "--model", tiny_model)
    assert ran.code == 1
    hint = "(--debug shows the traceback)"
    assert (
        ran.err == f"sprachbund: error: {talk}: unexpected ZeroDivisionError: nobody expected this {hint}\n"
    )
