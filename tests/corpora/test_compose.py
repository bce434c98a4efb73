"""Composed utterances: which recordings are played in which order, the words heard, what is joined."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from num2words import num2words

from sprachbund.corpora.asterisk import load_clips, load_prompt_set, write_composed
from sprachbund.corpora.asterisk.compose import (
    COMPOSABLE,
    MAX_GAP_S,
    MIN_GAP_S,
    SLOW_GAP_S,
    SLOW_SHARE,
    compose,
    composed_utterances,
    draw_gaps,
    join,
)
from sprachbund.corpora.asterisk.numbers import number, written
from sprachbund.corpora.asterisk.prompts import Clips, PromptSet, is_clip
from sprachbund.corpora.phrasebook import Meaning, render, split_of
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from tests.corpora import asterisk_tree

TONE = np.full(1600, 0.1, dtype=np.float32)


class EverythingRecorded(Mapping[str, np.ndarray]):
    """A speaker who recorded whatever is asked for, except what is missing; remembers what was played."""

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        self.missing, self.played = missing, []

    def __contains__(self, name: object) -> bool:
        return name not in self.missing

    def __getitem__(self, name: str) -> np.ndarray:
        self.played.append(name.removeprefix("digits/"))
        return TONE

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def say(meaning: Meaning, language: str, *missing: str) -> tuple[str, list[str]] | None:
    samples = EverythingRecorded(missing)
    clips = Clips(language=language, speaker="s", held_out=False, samples=samples, texts={})
    made = compose(meaning, language, clips, random.Random(3))
    return None if made is None else (made.text, samples.played)


def value(number_: int) -> Meaning:
    return Meaning(kind="number", slots={"value": number_})


@pytest.mark.parametrize(
    ("language", "number_", "text", "played"),
    [
        ("en", 342, "three hundred forty-two", "3 hundred 40 2"),
        ("en", 12_015, "twelve thousand fifteen", "12 thousand 15"),
        ("es", 1_021, "mil veintiuno", "thousand 21"),
        ("es", 100, "cien", "hundred"),
        ("es", 146, "ciento cuarenta y seis", "100-and 40 and 6"),
        ("es", 31_500, "treinta y un mil quinientos", "30 and 1m thousand 500"),
        ("es", 21_000, "veintiún mil", "20-and 1m thousand"),
        ("fr", 71, "soixante et onze", "60 et 11"),
        ("fr", 80, "quatre-vingts", "80"),
        ("fr", 91, "quatre-vingt-onze", "80 11"),
        ("fr", 21, "vingt et un", "20 et 1"),
        ("fr", 200, "deux cents", "2 hundred"),
        ("fr", 80_001, "quatre-vingt mille un", "80 thousand 1"),
        ("it", 28, "ventotto", "28"),
        ("it", 342, "trecentoquarantadue", "3 hundred 40 2"),
        ("it", 2_031, "duemilatrentuno", "2 thousands 31"),
        ("it", 1_100, "millecento", "thousand hundred"),
        ("ru", 2_500, "две тысячи пятьсот", "2f thousands-i 500"),
        ("ru", 121, "сто двадцать один", "hundred 20 1"),
        ("ru", 21_001, "двадцать одна тысяча один", "20 1f thousand 1"),
        ("ru", 5_000, "пять тысяч", "5 thousands"),
    ],
)
def test_numbers(language: str, number_: int, text: str, played: str) -> None:
    assert say(value(number_), language) == (text, played.split())


@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru"])
def test_numbers_agree_with_num2words(language: str) -> None:
    rng = random.Random(5)
    for number_ in [*range(1100), *(rng.randint(0, 999_999) for _ in range(1500))]:
        expected = num2words(number_, lang=language).replace(",", "").replace(" and ", " ")
        if language == "es":  # num2words does not shorten "uno" before "mil"
            expected = expected.replace("veintiuno mil", "veintiún mil").replace("uno mil", "un mil")
        if language == "ru":  # an exchange says "тысяча" alone
            expected = expected.replace("одна тысяча", "тысяча") if 1000 <= number_ < 2000 else expected
        assert written(number(number_, language) or []) == expected


@pytest.mark.parametrize(
    ("language", "meaning", "text", "played"),
    [
        ("en", Meaning(kind="digits", slots={"digits": "471"}), "four seven one", "4 7 1"),
        ("ru", Meaning(kind="digits", slots={"digits": "05"}), "ноль пять", "0 5"),
        ("en", Meaning(kind="ordinal", slots={"value": 22}), "twenty-second", "20 h-2"),
        ("es", Meaning(kind="ordinal", slots={"value": 13}), "décimo tercero", "h-13"),
        ("ru", Meaning(kind="ordinal", slots={"value": 23}), "двадцать третий", "20 h-3"),
        (
            "en",
            Meaning(kind="date", slots={"month": 3, "day": 3, "year": 2026, "weekday": 1}),
            "Tuesday March third twenty twenty-six",
            "day-2 mon-2 h-3 20 20 6",
        ),
        (
            "en",
            Meaning(kind="date", slots={"month": 1, "day": 31, "year": 2004}),
            None,
            "mon-0 30 h-1 2 thousand 4",
        ),
        ("en", Meaning(kind="date", slots={"month": 1, "day": 9, "year": 1907}), None, "mon-0 h-9 19 oh 7"),
        (
            "es",
            Meaning(kind="date", slots={"month": 12, "day": 21, "year": 1984, "weekday": 6}),
            "domingo veintiuno de diciembre de mil novecientos ochenta y cuatro",
            "day-0 21 es-de mon-11 es-de thousand 900 80 and 4",
        ),
        ("fr", Meaning(kind="date", slots={"month": 8, "day": 1}), "premier août", "h-1 mon-7"),
        (
            "it",
            Meaning(kind="date", slots={"month": 6, "day": 10, "year": 2010}),
            "dieci giugno duemiladieci",
            "10 mon-5 ore-2000 10",
        ),
        (
            "it",
            Meaning(kind="date", slots={"month": 5, "day": 2, "year": 1998}),
            "due maggio millenovecentonovantotto",
            "2 mon-4 ore-1900 98",
        ),
        ("ru", Meaning(kind="date", slots={"month": 3, "day": 3}), "третий марта", "h-3 mon-2"),
        ("en", Meaning(kind="time", slots={"hour": 15, "minute": 5}), "three oh five p m", "3 oh 5 p-m"),
        ("en", Meaning(kind="time", slots={"hour": 7, "minute": 0}), "seven o'clock", "7 oclock"),
        ("en", Meaning(kind="time", slots={"hour": 0, "minute": 20}), "twelve twenty a m", "12 20 a-m"),
        ("es", Meaning(kind="time", slots={"hour": 3, "minute": 15}), "a las tres y quince", "at 3 and 15"),
        ("es", Meaning(kind="time", slots={"hour": 22, "minute": 30}), "a las veintidós treinta", "at 22 30"),
        ("fr", Meaning(kind="time", slots={"hour": 15, "minute": 30}), "quinze heures trente", "15 hours 30"),
        ("it", Meaning(kind="time", slots={"hour": 1, "minute": 20}), "una e venti", "ore-una e 20"),
        ("ru", Meaning(kind="time", slots={"hour": 20, "minute": 15}), None, "20 hours 15 minutes"),
        ("en", Meaning(kind="new_messages", slots={"n": 1}), None, "vm-youhave 1 vm-inbox vm-message"),
        (
            "es",
            Meaning(kind="new_messages", slots={"n": 21}),
            None,
            "vm-youhave 20-and 1m vm-messages vm-inbox",
        ),
        ("it", Meaning(kind="new_messages", slots={"n": 1}), None, "vm-youhave un vm-nuovo vm-message"),
        (
            "ru",
            Meaning(kind="new_and_old_messages", slots={"n": 21, "m": 3}),
            "у вас двадцать одно новое сообщение и три старых сообщения",
            "vm-youhave 20 1n vm-newn vm-message vm-and 3 vm-oldx vm-messagex1",
        ),
        ("ru", Meaning(kind="waiting_time", slots={"n": 7}), None, "queue-holdtime 7 queue-minutes"),
        (
            "fr",
            Meaning(kind="extension_busy", slots={"number": "578"}),
            "la personne au poste cinq sept huit est présentement en ligne",
            "vm-theperson 5 7 8 vm-isonphone",
        ),
        (
            "es",
            Meaning(kind="duration", slots={"hours": 2, "minutes": 1}),
            None,
            "2 hours vm-and 1m queue-minute",
        ),
        ("en", Meaning(kind="weekday_time", slots={"day": 0, "time": (9, 0)}), None, "day-1 at 9 oclock"),
        (
            "en",
            Meaning(kind="money", slots={"price": (45, 0, "dollar")}),
            "forty-five dollars",
            "40 5 dollars",
        ),
    ],
)
def test_meanings(language: str, meaning: Meaning, text: str | None, played: str) -> None:
    made = say(meaning, language)
    assert made is not None
    assert made[1] == played.split()
    if text is not None:
        assert made[0] == text


@pytest.mark.parametrize(
    ("language", "meaning"),
    [
        ("ru", Meaning(kind="date", slots={"month": 3, "day": 3, "year": 2020})),
        ("ru", Meaning(kind="time", slots={"hour": 3, "minute": 0})),
        ("fr", Meaning(kind="time", slots={"hour": 21, "minute": 0})),
        ("fr", Meaning(kind="ordinal", slots={"value": 22})),
        ("en", Meaning(kind="number", slots={"value": 1_000_000})),
        ("en", Meaning(kind="money", slots={"price": (45, 50, "dollar")})),
        ("en", Meaning(kind="order_food", slots={})),
    ],
)
def test_what_was_never_recorded_is_not_said(language: str, meaning: Meaning) -> None:
    assert say(meaning, language) is None


def test_missing_recordings_are_replaced_left_out_or_fatal() -> None:
    assert say(value(31), "es", "digits/and") == ("treinta y uno", ["30", "vm-and", "1"])
    time = Meaning(kind="time", slots={"hour": 3, "minute": 15})
    assert say(time, "es", "digits/at") == ("tres y quince", ["3", "and", "15"])
    assert say(value(31), "es", "digits/and", "vm-and") is None


def test_joining_adds_every_clip_once_with_gaps_in_bounds() -> None:
    rng = random.Random(0)
    drawn = [draw_gaps(6, rng) for _ in range(500)]
    gaps = [gap for utterance in drawn for gap in utterance]
    assert MIN_GAP_S <= min(gaps) < -0.02
    assert 0.6 < max(gaps) <= SLOW_GAP_S
    slow = sum(max(utterance) > MAX_GAP_S for utterance in drawn) / len(drawn)
    assert 0.3 * SLOW_SHARE < slow <= 1.2 * SLOW_SHARE
    clips = [
        np.sin(2 * np.pi * hz * np.arange(8000) / 16000).astype(np.float32) / 4 for hz in (400, 800, 1600)
    ]
    before = [clip.copy() for clip in clips]
    joined = next(made for _ in range(99) if len(made := join(clips, rng)) <= 24000 + 3 * 4800)
    assert all(np.array_equal(clip, old) for clip, old in zip(clips, before, strict=True))
    assert 24000 - 2 * 480 <= len(joined) <= 24000 + 2 * 4800 + 4800
    third = len(joined) // 3
    order = [
        np.abs(np.fft.rfft(part, 16000)).argmax()
        for part in (joined[:third], joined[third : 2 * third], joined[2 * third :])
    ]
    assert order == [pytest.approx(hz, abs=2) for hz in (400, 800, 1600)]
    assert float((joined**2).sum()) == pytest.approx(3 * float((clips[0] ** 2).sum()), rel=0.06)


NAMES = ("vm-youhave", "vm-goodbye", "vm-sorry", "conf-full", "conf-muted", "queue-thereare")


@pytest.fixture
def made_prompts() -> tuple[PromptSet, dict[str, Clips]]:
    """Two speakers, one of them held out, with all small numbers and a few prompts."""
    texts = {
        name: {"en": f"english {name} text", "es": f"texto {name}", "de": f"deutsch {name}"} for name in NAMES
    }
    splits = dict.fromkeys(NAMES, "train") | {"conf-full": "test", "conf-muted": "test"}
    prompts = PromptSet(prompts=(), texts=texts, splits=splits, cleaning={})
    clips = {
        speaker: Clips(
            language="en",
            speaker=speaker,
            held_out=held_out,
            samples={**{f"digits/{i}": TONE for i in range(100)}, **dict.fromkeys(NAMES, TONE)},
            texts={**{f"digits/{i}": str(i) for i in range(100)}, **{n: texts[n]["en"] for n in NAMES}},
        )
        for speaker, held_out in (("known", False), ("unheard", True))
    }
    return prompts, clips


@pytest.mark.parametrize("split", ["train", "test"])
def test_stream_keeps_splits_apart(made_prompts: tuple[PromptSet, dict[str, Clips]], split: str) -> None:
    prompts, clips = made_prompts
    stream = composed_utterances(clips, random.Random(1), split, prompts=prompts)
    made = list(itertools.islice(stream, 300))
    assert {u.speaker for u in made} == {"known"}
    assert {"prompts", "prompt+number", "digits", "number"} <= {u.kind for u in made}
    other = ("conf-full", "conf-muted") if split == "train" else ("vm-goodbye", "vm-sorry")
    assert not any(name in u.text for u in made for name in other)
    for u in made:
        assert "en" not in u.translations
        assert u.translations["es"]
        if u.kind == "prompts":
            first, second = u.text.replace("english ", "").removesuffix(" text").split(" text ")
            assert u.translations["de"] == f"deutsch {first} deutsch {second}"
    shares = sum(u.kind == "prompts" for u in made) / len(made)
    assert 0.1 < shares < 0.3


def test_stream_translates_meanings_by_rendering(made_prompts: tuple[PromptSet, dict[str, Clips]]) -> None:
    _, clips = made_prompts
    stream = composed_utterances(clips, random.Random(1), "test", kinds=["digits"], speakers=["unheard"])
    words = {num2words(i): str(i) for i in range(10)}
    for u in itertools.islice(stream, 50):
        meaning = Meaning(kind="digits", slots={"digits": "".join(words[word] for word in u.text.split())})
        assert split_of(meaning) == "test"
        assert u.speaker == "unheard"
        assert u.translations == {
            lang: render(meaning, lang) for lang in ("es", "fr", "it", "de", "ru", "pt", "nl")
        }


def test_stream_is_the_same_for_one_seed(made_prompts: tuple[PromptSet, dict[str, Clips]]) -> None:
    prompts, clips = made_prompts
    first, second = (
        list(itertools.islice(composed_utterances(clips, random.Random(9), "train", prompts=prompts), 40))
        for _ in "ab"
    )
    assert [u.text for u in first] == [u.text for u in second]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first, second, strict=True))


def test_stream_errors(made_prompts: tuple[PromptSet, dict[str, Clips]]) -> None:
    _, clips = made_prompts
    with pytest.raises(SprachbundError, match=r"no speaker.*known, unheard"):
        next(composed_utterances(clips, random.Random(0), "train", speakers=["nobody"]))
    with pytest.raises(SprachbundError, match="nothing can be composed"):
        next(composed_utterances(clips, random.Random(0), "train", kinds=["percent"]))


def test_composed_manifest(made_prompts: tuple[PromptSet, dict[str, Clips]], tmp_path: object) -> None:
    prompts, clips = made_prompts
    write_composed(tmp_path / "c", prompts, split="train", num_utterances=12, clips=clips, speakers=["known"])  # type: ignore[operator]
    manifest = Manifest(tmp_path / "c")  # type: ignore[operator]
    assert len(manifest) == 12
    assert all(entry.custom["kind"].startswith("composed ") for entry in manifest)
    assert all(np.abs(manifest.samples(i)).max() > 0.05 for i in range(12))


@pytest.fixture(scope="module")
def real_clips() -> dict[str, Clips]:
    source = asterisk_tree.real_source()
    if source is None:
        pytest.skip("the real packages are not on this machine")
    prompts = load_prompt_set(source)
    small = [
        p for p in prompts.prompts if is_clip(p.name) or p.name.startswith(("vm-and", "vm-from", "hours"))
    ]
    return load_clips(small)


def test_real_speakers_say_most_meanings(real_clips: dict[str, Clips]) -> None:
    rng = random.Random(2)
    assert len(real_clips) == 8
    for clips in real_clips.values():
        for digits in ("0123456789", "42"):
            meaning = Meaning(kind="digits", slots={"digits": digits})
            assert compose(meaning, clips.language, clips, rng) is not None
        said = sum(compose(value(n), clips.language, clips, rng) is not None for n in range(100))
        assert said == 100, clips.speaker
        days = [Meaning(kind="date", slots={"month": m, "day": d}) for m in range(1, 13) for d in (1, 9, 23)]
        assert all(compose(day, clips.language, clips, rng) for day in days), clips.speaker
        assert set(COMPOSABLE[clips.language]) >= {"digits", "number", "ordinal", "date", "time"}


def test_real_words_equal_the_transcripts_of_the_recordings(real_clips: dict[str, Clips]) -> None:
    """What is written for a recording in a number is what its own transcript says."""
    for clips in real_clips.values():
        samples = EverythingRecorded()
        listener = Clips(language=clips.language, speaker="", held_out=False, samples=samples, texts={})
        for n in [*range(100), 342, 777]:
            samples.played.clear()
            made = compose(value(n), clips.language, listener, random.Random(0))
            assert made is not None
            if all(f"digits/{name}" in clips.texts for name in samples.played):
                heard = "".join(clips.texts[f"digits/{name}"] for name in samples.played)
                assert _letters(made.text) == _letters(heard), (clips.language, n)


def _letters(text: str) -> str:
    """Letters only; spelling that does not change the sound is left aside."""
    text = re.sub(r"(vingt|cent)s$", r"\1", text).replace("tré", "tre")
    return "".join(letter for letter in text if letter.isalpha())
