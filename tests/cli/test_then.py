"""`--then`: a cascade on the command line, of a tiny recogniser and an M2M-100 of random weights."""

import json
from pathlib import Path

import pytest

from sprachbund.decoding.texts import translate_texts
from sprachbund.models.io import load
from sprachbund.text.segmentation import split_sentences
from tests.models.translation.support import make_checkpoint
from tests.stories.support import command, speech, write_tiny_model, write_wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording, both halves, and a cascade of them as a directory."""
    root = tmp_path_factory.mktemp("then")
    write_wav(root / "talk.wav", speech())
    write_tiny_model(root / "recogniser")
    make_checkpoint(root / "m2m", "m2m_100")
    (root / "both").mkdir()
    halves = {"recogniser": str(root / "recogniser"), "translator": "../m2m"}
    (root / "both" / "config.json").write_text(json.dumps({"model_type": "cascade", **halves}))
    return root


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return folder


BOTH = ("--model", "recogniser", "--then", "m2m", "--engine", "torch")


def test_a_recording(here: Path) -> None:
    ran = command(
        "translate", "talk.wav", "--from", "en", "--to", "zh,en", *BOTH, "--no-guard", "--words", "--json"
    )
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["engine"]["translator"]["name"] == "torch"
    chinese, english = (result["translations"][tag] for tag in ("zh", "en"))
    texts = [segment["text"] for segment in [*english["segments"], *english["dropped"]]]
    assert all("source_text" not in segment for segment in english["segments"])
    translator = load(here / "m2m")
    for segment in chinese["segments"]:
        assert segment["source_text"] in texts
        sentences = split_sentences(segment["source_text"], "en")
        alone = [row[0].text.strip() for row in translate_texts(translator, sentences, ["zh"], "en")]
        assert segment["text"] == "".join(alone)
        assert "".join(word["text"] for word in segment["words"]) == "".join(segment["text"].split())


@pytest.mark.slow
def test_a_directory_is_the_same(here: Path) -> None:
    asked = ("translate", "talk.wav", "--from", "en", "--to", "ko", "--no-guard", "--engine", "torch")
    one, other = command(*asked, "--model", "both"), command(*asked, *BOTH[:4])
    assert one.code == other.code == 0
    assert one.out == other.out
    assert "both: whole; cascade" in command("models", "check", "both").out
    assert "name its recogniser" in command("bench", "--model", "both", "--engine", "torch").err


def test_a_text_and_live(here: Path) -> None:
    ran = command("translate", "--text", "the train", "--from", "en", "--to", "ko", *BOTH)
    [[alone]] = translate_texts(load(here / "m2m"), ["the train"], ["ko"], "en")
    assert ran.out.strip() == alone.text.strip()
    live = command("listen", "talk.wav", "--fast", "--from", "en", "--to", "ko", "--json", *BOTH)
    assert live.code == 0, live.err
    assert [json.loads(line)["type"] for line in live.out.splitlines()][-1] == "text"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--then", "recogniser"), "cannot be the second half of a cascade"),
        (("--model", "m2m", "--then", "m2m"), "cannot be the first half"),
        (("--model", "m2m"), "reads text and hears nothing"),
        (("--model", "both", "--then", "m2m"), "the recogniser is a cascade itself"),
        (("--then", "none", "--offline"), "none"),
    ],
)
def test_halves_that_do_not_fit(here: Path, args: tuple[str, ...], says: str) -> None:
    model = () if "--model" in args else ("--model", "recogniser")
    ran = command("translate", "talk.wav", "--from", "en", "--to", "ko", *model, *args, "--engine", "torch")
    assert ran.code != 0
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("transcribe", "talk.wav", *BOTH), "--then m2m names a translator, and speech is only transcribed"),
        (("listen", "talk.wav", "--fast", *BOTH), "--then m2m names a translator, and speech is only"),
        (
            ("translate", "talk.wav", "--from", "en", "--to", "en", *BOTH),
            "--then m2m names a translator, and",
        ),
        (
            ("listen", "talk.wav", "--from", "en", "--to", "en", "--fast", *BOTH),
            "--then m2m names a translator",
        ),
        (
            ("transcribe", "talk.wav", "--model", "both", "--translator-draft", "x"),
            "--translator-draft is 'x'",
        ),
        (
            ("transcribe", "talk.wav", "--model", "both", "--both", "--format", "srt"),
            "--both shows what was said above its translation, and speech is only transcribed",
        ),
    ],
)
def test_what_is_of_a_translator_is_refused_where_nothing_is_translated(
    here: Path, args: tuple[str, ...], says: str
) -> None:
    ran = command(*args)
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_next_best_texts_need_a_place(here: Path, tmp_path: Path) -> None:
    """In a translation of a cascade they change the text itself."""
    asked = ("talk.wav", "--from", "en", "--no-guard", "--nbest", "2", "--beam", "2", "--max-tokens", "4")
    says = "--nbest 2 gives texts that are shown in --json, and in the files of --format json, jsonl"
    for more in ((), ("--format", "txt,srt", "--out", str(tmp_path)), ("--table",)):
        ran = command("transcribe", *asked, *BOTH[:2], *BOTH[4:], *more)
        assert (ran.code, ran.out) == (2, "")
        assert says in ran.err
    assert command("transcribe", *asked, *BOTH[:2], *BOTH[4:], "--json").code == 0
    assert command("translate", *asked, "--to", "ko", *BOTH).code == 0


def test_subtitles_in_both_languages(here: Path, tmp_path: Path) -> None:
    asked = ("translate", "talk.wav", "--from", "en", "--to", "ko", "--no-guard", "--out", tmp_path, "--both")
    ran = command(*asked, *BOTH, "--format", "srt,vtt")
    assert ran.code == 0, ran.err
    said = command("transcribe", "talk.wav", "--from", "en", "--no-guard", *BOTH[:2], *BOTH[4:]).out
    first = (tmp_path / "talk.ko.srt").read_text().splitlines()[2]
    assert first.split()[0] in said
    assert "only" not in ran.err
    assert "choose from srt, vtt" in command(*asked, *BOTH, "--format", "json").err
    for more, says in (
        (("--format", "srt", "--words"), "--words are not shown where --both shows two texts"),
        (
            ("--format", "tsv", "--speakers", "voices.onnx"),
            "--speakers are not shown in tsv; add another --format",
        ),
    ):
        ran = command(*(asked[:-1] if "tsv" in more else asked), *BOTH, *more)
        assert (ran.code, ran.out) == (2, "")
        assert says in ran.err
    assert "--both is for the files of --format" in command(*asked[:-4], "--both", *BOTH).err
    assert (
        "which a cascade knows"
        in command(
            "translate",
            "talk.wav",
            "--to",
            "de",
            "--both",
            "--format",
            "srt",
            "--out",
            tmp_path / "x",
            *BOTH[:2],
        ).err
    )
