"""Code-switched speech: exact spans, true word ranges, nothing leaked, the same again."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sprachbund.audio.augment import TRAIN
from sprachbund.cli import main
from sprachbund.corpora.asterisk.prompts import Clips
from sprachbund.corpora.mixed import (
    KEEPING_TIMES,
    MixedSpeechOptions,
    draw_mixed,
    draw_spliced,
    join_runs,
    make_mixed,
    mixed,
    range_of,
    read_pair,
    spliced,
)
from sprachbund.corpora.phrasebook import LANGUAGES, Meaning, render, render_pieces, split_of
from sprachbund.corpora.phrasebook.sentences import templates
from sprachbund.data.language_spans import split_words
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.data.synthesis import Voice, speak
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import embedded_spans, is_code_switched, spoken_spans
from sprachbund.evaluation.run import open_corpus
from sprachbund.text.languages import MIXED
from tests.corpora.asterisk_tree import write_tree
from tests.corpora.test_compose import EverythingRecorded

OPTIONS = MixedSpeechOptions(train_utterances=10, heldout_utterances=4, augmentation=KEEPING_TIMES)
TIME = Meaning(kind="weekday_time", slots={"day": 2, "time": (5, 30)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixed")
    make_mixed(directory, OPTIONS, workers=1)
    return directory


def test_pieces_joined_are_the_rendering() -> None:
    rng = random.Random(0)
    for _ in range(200):
        main, other = rng.sample(LANGUAGES, 2)
        sentence = draw_mixed(main, other, "train", rng)
        for tag in LANGUAGES:
            pieces = render_pieces(sentence.meaning, tag)
            assert "".join(piece.text for piece in pieces) == render(sentence.meaning, tag)
            assert {piece.slot for piece in pieces} - {""} == set(templates()[sentence.meaning.kind].slots)


def test_an_embedded_slot_is_said_as_its_own_language_says_it() -> None:
    text = "".join(piece.text for piece in render_pieces(TIME, "en", embedded={"time": "es"}))
    assert text == "on Wednesday at a las cinco y media"
    assert (
        "".join(p.text for p in render_pieces(TIME, "es", embedded={"day": "en"}))
        == "on Wednesday a las cinco y media"
    )
    with pytest.raises(ValueError, match="has no slot city"):
        render_pieces(TIME, "es", embedded={"city": "en"})
    with pytest.raises(SprachbundError, match="'xx' is not in the phrasebook"):
        render_pieces(TIME, "es", embedded={"time": "xx"})


def test_places_are_those_of_the_slots_words() -> None:
    rng = random.Random(1)
    for _ in range(200):
        main, other = rng.sample(LANGUAGES, 2)
        sentence = draw_mixed(main, other, "train", rng)
        assert {run.language for run in sentence.runs} == {main, other}
        fields = sentence.fields([(0.0, 1.0)] * len(sentence.runs), LANGUAGES, "c")
        assert fields["text"] == " ".join(span["text"] for span in fields["custom"]["spans"])
        for run, span in zip(sentence.runs, fields["custom"]["spans"], strict=True):
            assert ("word_ranges" in span) == (run.language == other)
            ranges = dict(span.get("word_ranges", {}))
            assert ranges.pop(MIXED, None) == ranges.get(main)
            for tag, (start, end) in ranges.items():
                pieces = render_pieces(sentence.meaning, tag)
                whole = fields["text"] if tag == main else render(sentence.meaning, tag)
                said = [w for p in pieces if p.slot in run.slots for w in split_words(p.text, tag)]
                wanted = split_words(run.text, main) if tag == main else said
                assert split_words(whole, tag)[start:end] == wanted


def test_slots_that_others_stand_between_have_no_place() -> None:
    pieces = render_pieces(Meaning(kind="party", slots={"n": 3, "m": 2}), "en")
    assert range_of(["n"], pieces, "en") == (2, 4)
    assert range_of(["n", "m"], pieces, "en") is None


def test_no_switch_inside_a_word_and_none_that_nobody_hears() -> None:
    city = Meaning(kind="stay_from_to", slots={"a": 1, "b": 3, "city": "madrid"})
    rng = random.Random(2)
    for _ in range(50):
        sentence = mixed(city, "es", "en", rng)
        assert sentence is None or all("city" not in run.slots for run in sentence.runs)


def test_spans_are_where_each_voice_speaks(made: Path) -> None:
    """Clean parts: between the spans nothing sounds, and each is what the voice says alone."""
    manifest = Manifest(made / "test")
    for index, utterance in enumerate(manifest):
        samples, spans = manifest.samples(index), utterance.custom["spans"]
        heard = np.zeros(len(samples), bool)
        for span in spans:
            start, end = (round(span[name] * 16_000) for name in ("start_s", "end_s"))
            assert np.abs(samples[start:end]).max() > 0.01
            heard[start:end] = True
        assert not samples[~heard].any()
        assert spans[0]["start_s"] == 0
        assert spans[-1]["end_s"] == pytest.approx(utterance.duration_s)


def test_joined_sounds_keep_their_samples() -> None:
    rng = random.Random(3)
    sounds = [speak(text, Voice(language=tag)) for text, tag in (("buenos días", "es"), ("my friend", "en"))]
    samples, times_s = join_runs(sounds, rng)
    for sound, (start_s, end_s) in zip(sounds, times_s, strict=True):
        assert np.array_equal(samples[round(start_s * 16_000) : round(end_s * 16_000)], sound)


def test_parts_hold_what_they_should_and_meanings_do_not_leak(made: Path) -> None:
    counts = {
        "train": 10,
        "dev": 8,
        "test": 8,
        "monolingual-train": 10,
        "monolingual-dev": 8,
        "monolingual-test": 8,
    }
    assert sorted(path.name for path in made.iterdir()) == sorted(counts)
    for name, count in counts.items():
        utterances = list(open_corpus(made / name))
        assert len(utterances) == count
        assert {u.language for u in utterances} == {"es", "en"}
        part = name.rpartition("-")[2]
        assert {split_of(_meaning(u)) for u in utterances} == {part}
        switched = [is_code_switched(u) for u in utterances]
        assert all(switched) if part == name else not any(switched)
        own = {MIXED} if part == name else set()
        assert all({u.language, *u.translations} == {"en", "es", "de"} | own for u in utterances)
    first = Manifest(made / "train")[0]
    assert [span.language for span in spoken_spans(first)][:2] == ["es", "en"]
    assert all(embedded.word_range for embedded in embedded_spans(first, "en"))


def test_it_says_what_it_holds(made: Path) -> None:
    info = json.loads((made / "test" / "dataset.json").read_text())
    spans = [span for u in Manifest(made / "test") for span in u.custom["spans"]]
    assert info["switches"] == len(spans) - 8
    assert {tag: c["spans"] for tag, c in info["spans"].items()} == {
        tag: sum(span["language"] == tag for span in spans) for tag in ("en", "es")
    }


def test_show_tells_spans(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(made / "test"), "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    span = Manifest(made / "test")[0].custom["spans"][1]
    assert "switches" in printed
    assert f"to {span['end_s']:.2f} s  {span['language']}  {span['text']}" in printed


@pytest.mark.slow
def test_the_same_again_from_the_same_seed(made: Path, tmp_path: Path) -> None:
    make_mixed(tmp_path, OPTIONS, workers=2)
    for name in ("train", "monolingual-train", "test"):
        for file in ("cuts.00000.jsonl", "audio.00000.wav"):
            assert (made / name / file).read_bytes() == (tmp_path / name / file).read_bytes()


def recorded(language: str, *missing: str) -> Clips:
    return Clips(
        language=language,
        speaker=f"s-{language}",
        held_out=False,
        samples=EverythingRecorded(missing),
        texts={},
    )


def test_announcements_of_people_are_spliced_run_by_run() -> None:
    clips = {tag: recorded(tag) for tag in ("en", "es")}
    meaning = Meaning(kind="extension_busy", slots={"number": "471"})
    made = spliced(meaning, "es", "en", clips, random.Random(4))
    assert made is not None
    sentence, sounds = made
    assert [(run.language, run.text) for run in sentence.runs] == [
        ("es", "la persona en la extensión"),
        ("en", "four seven one"),
        ("es", "se encuentra ocupada"),
    ]
    assert all(sound[0] and sound[-1] for sound in sounds), "no silence is left around them"
    fields = sentence.fields([(0, 1), (1, 2), (2, 3)], ("en", "es", "de"), "spliced")
    assert fields["custom"]["spans"][1]["word_ranges"]["de"] == [2, 5]
    assert (
        spliced(meaning, "es", "en", {**clips, "es": recorded("es", "vm-isonphone")}, random.Random(4))
        is None
    )


@pytest.mark.slow
def test_recordings_are_spliced_from_a_tree_of_packages(tmp_path: Path) -> None:
    words = {"vm-theperson": "the person", "vm-isonphone": "is busy", "vm-isunavail": "is away"}
    texts = {tag: {**words, **{f"digits/{n}": f"{n}" for n in range(10)}} for tag in ("en", "es")}
    write_tree(tmp_path / "tree", {"en": "en_US_f_Allison", "es": "es_MX_f_Allison"}, texts)
    options = MixedSpeechOptions(train_utterances=2, heldout_utterances=1, spliced_utterances=3)
    make_mixed(tmp_path / "out", options, source=tmp_path / "tree", workers=1)
    train, test = (open_corpus(tmp_path / "out" / f"spliced-{part}") for part in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert {u.speaker for u in test} == {
        "asterisk-es-allison+asterisk-en-allison",
        "asterisk-en-allison+asterisk-es-allison",
    }
    for utterance in test:
        assert len(spoken_spans(utterance)) == 3
        assert embedded_spans(utterance, "de")[0].word_range is not None
    info = json.loads((tmp_path / "out" / "spliced-test" / "dataset.json").read_text())
    assert info["attribution"].keys() == {"asterisk-en-allison", "asterisk-es-allison"}
    with pytest.raises(SprachbundError, match="no recorded prompts in de"):
        make_mixed(
            tmp_path / "x", replace(options, pairs=(("es", "de"),)), source=tmp_path / "tree", workers=1
        )


def test_spliced_meanings_belong_to_their_part() -> None:
    clips, rng = {tag: recorded(tag) for tag in ("en", "it")}, random.Random(5)
    for part in ("train", "test"):
        for _ in range(5):
            sentence, _ = draw_spliced("it", "en", part, clips, rng)
            assert split_of(sentence.meaning) == part
    with pytest.raises(SprachbundError, match=r"no announcement in it .* get the whole packages"):
        draw_spliced("it", "en", "test", {tag: recorded(tag, *_CARRIERS) for tag in clips}, rng)


_CARRIERS = ("vm-youhave", "queue-thereare", "queue-holdtime", "vm-theperson", *(f"digits/day-{n}" for n in range(7)),
             *(f"digits/mon-{n}" for n in range(12)))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mixed", "es-en"], "'es-en' is no pair of languages; write main+embedded"),
        (["--mixed", "es+es"], "es+es mixes a language with itself"),
        (["--mixed", "es+xx"], "--mixed is 'xx'; choose from en, "),
        (["--languages", "de"], "--languages is 'de', and --mixed has speech in es; add es"),
        (["--source", "/tmp"], "used with --spliced N"),
        (["--spliced", "3", "--source", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_bad_input(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "mixed", "--out", str(tmp_path / "m"), "--utterances", "2", *options]) != 0
    assert said in capsys.readouterr().err


def test_an_augmentation_that_would_move_the_spans_is_refused() -> None:
    with pytest.raises(SprachbundError, match="would move the spans"):
        MixedSpeechOptions(augmentation=TRAIN)
    assert read_pair(" es+en ") == ("es", "en")


def _meaning(utterance: Utterance) -> Meaning:
    kind, slots = json.loads(utterance.custom["meaning"])
    return Meaning(kind=kind, slots={k: tuple(v) if isinstance(v, list) else v for k, v in slots.items()})
