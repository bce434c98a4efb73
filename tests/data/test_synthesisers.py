"""Who speaks: drawn by seed, shared fairly, people held out, espeak-ng standing in, and nothing new by default."""

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sprachbund.audio.augment import CLEAN
from sprachbund.cli import main
from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.corpora.editions import Edition, edition, make_edition, make_part
from sprachbund.corpora.telephone import Telephone, make_telephone
from sprachbund.data.manifest import Manifest
from sprachbund.data.synthesis import NothingSaidError, Split, Voice, draw_voice
from sprachbund.data.synthesisers import (
    SYNTHESIZERS,
    InstalledVoice,
    ProgramVoice,
    check_synthesizers,
    draw_any_voice,
    installed_voices,
    say,
    speak_as,
    split_of_voice,
)
from sprachbund.errors import SprachbundError
from tests.corpora.asterisk_tree import write_tree
from tests.data.synthesis_standins import pico_standin, put_standins
from tests.stories.test_telephone import NUMBERS

pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")

LANGUAGES = ("en", "it", "ru", "de")
SMALL = edition(
    "tiny", languages=LANGUAGES, train_utterances=16, heldout_sentences=2, synthesizers=SYNTHESIZERS
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with stand-ins for the programs, and nothing else to be found; pico has one, too."""
    monkeypatch.setitem(sys.modules, "py_nanotts", pico_standin())
    directory = tmp_path / "bin"
    directory.mkdir()
    put_standins(directory, "flite", "festival")
    monkeypatch.setenv("PATH", str(directory))
    installed_voices.cache_clear()
    yield directory
    installed_voices.cache_clear()


def _digest(directory: Path) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".sha256")
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_what_espeak_speaks_alone_is_what_it_was_before_there_were_others(tmp_path: Path) -> None:
    make_edition(tmp_path, edition("tiny", train_utterances=8, heldout_sentences=2), workers=1)
    assert _digest(tmp_path) == "52697b1373260647067bb4ce57e5e467d7d13e2dbd665cd0b5a840f35a10d364"


def test_default_draws_nothing_more() -> None:
    new, old = random.Random(4), random.Random(4)
    for _ in range(200):
        assert draw_any_voice("en", new, "train") == draw_voice("en", old, "train")
    assert new.getstate() == old.getstate()


def test_synthesisers_that_can_are_drawn_equally_often(programs: Path) -> None:
    rng = random.Random(1)
    for language, expected in (
        ("en", {"espeak", "festival", "flite", "pico"}),
        ("ru", {"espeak", "festival"}),
        ("de", {"espeak", "pico"}),
    ):
        drawn = Counter(
            draw_any_voice(language, rng, "train", SYNTHESIZERS).name.split("-")[0] for _ in range(1200)
        )
        assert set(drawn) == expected
        assert min(drawn.values()) > 0.85 * 1200 / len(expected)


def test_espeak_stands_in_for_a_language_or_part_without_a_voice(programs: Path) -> None:
    rng = random.Random(2)
    assert isinstance(draw_any_voice("de", rng, "train", ("festival", "flite")), Voice)
    assert isinstance(draw_any_voice("ru", rng, "test", ("festival",)), Voice)
    assert isinstance(draw_any_voice("ru", rng, "train", ("festival",)), ProgramVoice)


def test_no_person_is_in_two_parts(programs: Path) -> None:
    people = ("kal", "slt", "ked", "awb", "rms", "lp", "pc", "nsh")
    rng = random.Random(3)
    heard: dict[str, set[str]] = {}
    splits: tuple[Split, ...] = ("train", "dev", "test")
    for split in splits:
        for language in LANGUAGES[:3]:
            voices = [draw_any_voice(language, rng, split, ("festival", "flite")) for _ in range(100)]
            names = {voice.voice.name for voice in voices if isinstance(voice, ProgramVoice)}
            heard.setdefault(split, set()).update(p for p in people for name in names if p in name)
    assert heard == {
        "train": {"kal", "slt", "pc", "nsh"},
        "dev": {"ked", "awb"},
        "test": {"rms", "lp"},
    }


def test_voices_of_other_programs_people_installed_are_for_training_unless_the_person_is_held_out() -> None:
    def split(name: str) -> str:
        return split_of_voice(InstalledVoice(program="festival", name=name, language="en"))

    assert split("cmu_us_rms_cg") == "test"
    assert split("cmu_us_awb_arctic_clunits") == "dev"
    assert split("cmu_us_bdl_arctic_hts") == "train"


def test_manner_of_speaking_varies(programs: Path) -> None:
    rng = random.Random(5)
    voices = [draw_any_voice("en", rng, "train", ("flite",)) for _ in range(500)]
    drawn = [(v.tempo, v.ratio) for v in voices if isinstance(v, ProgramVoice)]
    tempos, ratios = np.array(drawn).T
    assert (tempos.min(), tempos.max()) == pytest.approx((0.5, 2.0), abs=0.1)
    assert np.mean((tempos > 0.8) & (tempos < 1.25)) > 0.4
    assert (ratios.min(), ratios.max()) == pytest.approx((2**-0.25, 2**0.25), abs=0.02)


@pytest.mark.parametrize(
    ("name", "program", "pitch_hz"),
    [
        ("kal_diphone", "festival", 200),
        ("cmu_us_slt_arctic_hts", "festival", 300),
        ("kal16", "flite", 250),
        ("en-US", "pico", 400),
    ],
)
def test_sound_is_trimmed_at_16_khz_with_tempo_and_pitch_changed(
    programs: Path, name: str, program: str, pitch_hz: float
) -> None:
    voice = InstalledVoice(program=program, name=name, language="en")
    text = "a tone of some length"
    duration_s = 0.05 * len(text)
    for ratio, tempo in ((1.0, 1.0), (1.15, 1.0), (1.0, 2.0), (0.85, 0.7)):
        samples = speak_as(text, ProgramVoice(voice=voice, ratio=ratio, tempo=tempo))
        assert samples.dtype == np.float32
        assert len(samples) / 16_000 == pytest.approx((duration_s + 0.1) / tempo, rel=0.02)
        spectrum = np.abs(np.fft.rfft(samples[1600:-1600] * np.hanning(len(samples) - 3200), 1 << 16))
        assert np.argmax(spectrum) * 16_000 / (1 << 16) == pytest.approx(pitch_hz * ratio, rel=0.03)
        assert np.abs(samples).max() == pytest.approx(8000 / 32768, rel=0.1)


def test_voices_of_pico_are_its_languages_and_two_are_held_out(programs: Path) -> None:
    voices = installed_voices("pico")
    assert {voice.language for voice in voices} == {"de", "en", "es", "fr", "it"}
    held_out = {voice.name for voice in voices if split_of_voice(voice) != "train"}
    assert held_out == {"en-GB", "it-IT"}
    with pytest.raises(NothingSaidError, match="pico says nothing for 'mute' as 'en-US'"):
        say("mute", InstalledVoice(program="pico", name="en-US", language="en", coding="utf-8"))


def test_pico_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py_nanotts", None)
    installed_voices.cache_clear()
    with pytest.raises(SprachbundError, match="pico is not installed: pip install py-nanotts"):
        check_synthesizers(("pico",), ("en",))


@pytest.mark.slow
def test_edition_with_others_counts_who_spoke_and_comes_out_the_same_twice(
    programs: Path, tmp_path: Path
) -> None:
    make_edition(tmp_path / "a", SMALL, workers=2)
    make_edition(tmp_path / "b", SMALL, workers=1)
    for part in ("train", "dev", "test"):
        info = json.loads((tmp_path / "a" / part / "dataset.json").read_text())
        counted = Counter(
            (utterance.speaker.split("-")[0].replace("espeak", "espeak-ng"), utterance.language)
            for utterance in Manifest(tmp_path / "a" / part)
            if utterance.speaker
        )
        spoken_by = {(who, tag): n for who, tags in info["spoken_by"].items() for tag, n in tags.items()}
        assert spoken_by == counted
        assert info["synthesizers"] == list(SYNTHESIZERS)
        assert info["attribution"].endswith("voices by " + ", ".join(info["spoken_by"]))
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    voices = json.loads((tmp_path / "a/train/dataset.json").read_text())["voices"]
    assert set(voices) <= set(check_synthesizers(SYNTHESIZERS, LANGUAGES))
    assert voices


def test_shard_is_drawn_again_when_a_program_crashes(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.corpora.editions.render", lambda meaning, tag, rng: "this fails once")
    crashing = Edition(
        name="once",
        seed=1,
        languages=("en",),
        train_utterances=3,
        heldout_sentences=2,
        synthesizers=("festival",),
    )
    make_edition(tmp_path / "made", crashing, workers=1)
    assert (programs / "crashed").exists()
    assert len(Manifest(tmp_path / "made/train")) == 3


def test_sentence_that_a_voice_cannot_say_is_drawn_again(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(["this is mute", "this is heard", "this is mute", "this is mute", "and this is"])
    monkeypatch.setattr("sprachbund.corpora.editions.render", lambda meaning, tag, rng: next(texts))
    one = Edition(name="mute", seed=1, languages=("en",), train_utterances=2, synthesizers=("flite",))
    make_part(tmp_path / "made", replace(one, no_speech_share=0.0), "train", 2, workers=1)
    assert [utterance.text for utterance in Manifest(tmp_path / "made")] == ["this is heard", "and this is"]


def test_what_cannot_speak_is_an_error_that_says_what_to_do(programs: Path) -> None:
    with pytest.raises(
        SprachbundError, match="unknown synthesiser 'mbrola': choose from espeak-ng, festival"
    ):
        check_synthesizers(("espeak-ng", "mbrola"), ("en",))
    with pytest.raises(SprachbundError, match="flite has a voice for none of de, it: leave it out"):
        check_synthesizers(("flite",), ("de", "it"))
    with pytest.raises(SprachbundError, match="no synthesiser named"):
        check_synthesizers((), ("en",))
    standin = programs / "festival"
    standin.write_text(standin.read_text().replace('"russian"', '"finnish"'))
    installed_voices.cache_clear()
    with pytest.raises(SprachbundError, match="no voice for 'ru' here: apt-get install festvox-ru"):
        check_synthesizers(("espeak-ng", "festival"), ("en", "ru"))
    assert check_synthesizers(("espeak-ng", "festival"), ("it", "de")) == (
        "festival-it-lp_diphone",
        "festival-it-pc_diphone",
    )


def test_command_names_the_package_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    installed_voices.cache_clear()
    out = tmp_path / "book"
    for kind in ("phrasebook", "telephone"):
        code = main(["data", "make", kind, "--synthesizers", "espeak-ng,festival", "--out", str(out)])
        assert code == 2
        assert "festival is not installed: apt-get install festival" in capsys.readouterr().err
    assert not out.exists()


def test_folder_begun_with_other_voices_is_not_continued(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "book"
    making = ["data", "make", "phrasebook", "--edition", "tiny", "--languages", "en", "--out", str(out)]
    making += ["--utterances", "2", "--heldout", "1", "--workers", "1"]
    assert main([*making, "--synthesizers", "flite"]) == 0
    assert main(making) != 0
    assert "begun with synthesizers flite, not espeak-ng" in capsys.readouterr().err
    standin = programs / "flite"
    standin.write_text(standin.read_text().replace("awb rms slt", "awb rms"))
    installed_voices.cache_clear()
    assert main([*making, "--synthesizers", "flite"]) != 0
    assert "begun with voices flite-en-awb, " in capsys.readouterr().err


@pytest.mark.slow
def test_telephone_prompts_are_spoken_by_all(programs: Path, tmp_path: Path) -> None:
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out and s.language in ("en", "it")}
    digits = {f"digits/{n}": word for n, word in enumerate(NUMBERS["en"])}
    prompts = {
        f"press-{name}": f"please press the key {name}"
        for name in ("ban", "den", "fon", "gul", "kim", "los", "bar", "don", "fim")
    }
    write_tree(tmp_path / "tree", folders, dict.fromkeys(folders, digits | prompts))
    sizes = {
        "train_utterances": 40,
        "heldout_utterances": 2,
        "shares": (0.0, 0.0, 1.0, 0.0),
        "augmentation": CLEAN,
    }
    options = Telephone(
        languages=("en", "it"), leave_out=("asterisk-it-carlo",), synthesizers=("festival", "flite"), **sizes
    )  # type: ignore[arg-type]
    make_telephone(tmp_path / "calls", options, source=tmp_path / "tree", workers=1)
    info = json.loads((tmp_path / "calls/train/dataset.json").read_text())
    assert set(info["spoken_by"]) == {"festival", "flite"}
    speakers = [utterance.speaker for utterance in Manifest(tmp_path / "calls/train")]
    assert sum(sum(by.values()) for by in info["spoken_by"].values()) == len([s for s in speakers if s])
    assert not any(person in speaker for speaker in speakers for person in ("ked", "awb", "rms", "lp_"))
