"""Cascades: what they write is what the recogniser writes, brought into another language by the translator."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.guard import length_ratio
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.result import Segment, Translation
from sprachbund.decoding.search import SearchRequest
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.texts import translate_texts
from sprachbund.decoding.transcripts import passages_of
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.base import Family, Features
from sprachbund.models.cascade import Cascade
from sprachbund.models.io import content_hash, load, save
from sprachbund.nn.decoder import DecoderCache
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.options import LiveOptions
from sprachbund.text.segmentation import ends_sentence, split_sentences
from tests.decoding.families import FAMILIES
from tests.decoding.test_one_pipeline import OPEN, sound
from tests.decoding.test_translate import Loudness
from tests.decoding.tiny_family import HOP, TinyFamily
from tests.models.translation.support import make_checkpoint
from tests.streaming.test_engine import run


class Reading(TinyFamily):
    """Reads letters: each is a frame of noise of its own. It writes one language."""

    name = "reading"

    def __init__(self, *, written: str = "es", read: Sequence[str] = ("de", "fr"), seed: int = 4) -> None:
        super().__init__(seed=seed)
        self.known_pairs = frozenset((tag, written) for tag in read)
        self.written = written
        self.capabilities = replace(self.capabilities, text_input=self)

    def text_features(self, texts: Sequence[str]) -> Features:
        longest = max(len(text) for text in texts)
        values = torch.zeros(len(texts), longest, HOP)
        for row, text in enumerate(texts):
            for place, letter in enumerate(text):
                values[row, place] = torch.randn(HOP, generator=torch.Generator().manual_seed(ord(letter)))
        return Features(values=values, num_frames=torch.tensor([len(text) for text in texts]))

    def prompt(self, target: object) -> list[int]:
        return [2]


class Backwards(Reading):
    """Attends to the letters of its text from the last to the first, two of them for each token that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, token_offsets=self)

    def source_offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[(n, n + 1) for n in range(len(text))] for text in texts]

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        first = cache.lengths.tolist()
        logits = super().step(tokens, cache, weights)
        if weights is not None:
            assert cache.memory_allowed is not None
            lengths = cache.memory_allowed[:, 0, 0].sum(-1).tolist()
            for layer in weights:
                layer.zero_()
                for row, (begin, length) in enumerate(zip(first, lengths, strict=True)):
                    for place in range(tokens.shape[1]):
                        layer[row, :, place, max(0, length - 1 - 2 * (begin + place))] = 1.0
        return logits


def speech(seconds: Sequence[float]) -> np.ndarray:
    """Noise in stretches, with silence between them."""
    parts = [part for n, s in enumerate(seconds) for part in (sound(s, n), np.zeros(SAMPLE_RATE, np.float32))]
    return np.concatenate(parts)


def read(
    family: Family, samples: np.ndarray, targets: Sequence[str], options: DecodingOptions = OPEN
) -> dict[str, Translation]:
    return translate(family, samples, targets, "de", options, sample_rate=SAMPLE_RATE, activity=Loudness())


def test_it_translates_what_the_recogniser_writes() -> None:
    recogniser, translator = TinyFamily(seed=0), Reading()
    samples = speech([1.5, 2.0, 1.0, 2.5])
    alone = read(recogniser, samples, ["transcribe"])["transcribe"]
    both = read(Cascade(recogniser, translator), samples, ["es", "de", "transcribe"])
    assert both["transcribe"].segments == both["de"].segments == alone.segments
    assert len(alone.segments) == 4
    assert len(set(both["es"].text.split())) > 1
    for said, written in zip(alone.segments, both["es"].segments, strict=True):
        assert written.source_text == said.text
        assert (written.start_s, written.end_s, written.target_language) == (said.start_s, said.end_s, "es")
        [[text]] = translate_texts(translator, [said.text], ["es"], "de", DecodingOptions())
        assert written.text == text.text.strip()
        assert written.mean_log_probability == pytest.approx(text.log_probability, abs=1e-5)
    one_by_one = read(Cascade(recogniser, translator), samples, ["es"], replace(OPEN, batch_size=1))
    assert [s.text for s in one_by_one["es"].segments] == [s.text for s in both["es"].segments]


def test_texts_go_to_the_translator() -> None:
    translator = Reading()
    cascade = Cascade(TinyFamily(), translator)
    texts = ["abc", "hello there"]
    assert list(translate_texts(cascade, texts, ["es"], "de")) == list(
        translate_texts(translator, texts, ["es"], "de")
    )


def test_words_have_the_times_of_what_they_were_translated_from() -> None:
    cascade = Cascade(TinyFamily(), Backwards())
    options = replace(OPEN, word_timestamps=True)
    translations = read(cascade, speech([1.5, 2.0]), ["es", "de"], options)
    different = 0
    for heard, written in zip(translations["de"].segments, translations["es"].segments, strict=True):
        assert " ".join(word.text for word in written.words) == " ".join(written.text.split())
        letters = [word for word in heard.words for _ in word.text]
        said = [n for n, letter in enumerate(heard.text) if letter != " "]
        tokens = len(written.text.replace(" ", ""))
        places = [max(0, len(heard.text) - 1 - 2 * n) for n in range(tokens)]
        expected, token = [], 0
        for word in written.words:  # the letter that most tokens of the word attend to, the first of equals
            own = places[token : token + len(word.text)]
            token += len(word.text)
            place = max(sorted(set(own)), key=own.count)
            source = letters[min(sum(n < place for n in said), len(letters) - 1)]
            expected.append((source.start_s, source.end_s))
        assert [(word.start_s, word.end_s) for word in written.words] == expected
        different = max(different, len(set(expected)))
        assert all(0 < word.probability <= 1 for word in written.words)
    assert different > 1


def test_words_are_refused_where_the_translator_does_not_show_what_it_reads() -> None:
    with pytest.raises(SprachbundError, match="translator reading does not show"):
        read(Cascade(TinyFamily(), Reading()), speech([1.0]), ["es"], replace(OPEN, word_timestamps=True))


def said(text: str, start_s: float, **more: object) -> Segment:
    plain = Segment(start_s=start_s, end_s=start_s + 1, source_language="en", target_language="en", text=text)
    return replace(plain, **more)  # type: ignore[arg-type]


def test_segments_are_joined_to_sentences() -> None:
    segments = [
        said("It was a long", 0),
        said("day. Dr. Smith", 1),
        said("(noise)", 2, dropped="no speech"),
        said("went home!", 3),
        said("Then", 4),
    ]
    passages = passages_of(segments)
    assert [p.sentences for p in passages] == [
        ("It was a long day.", "Dr. Smith went home!"),
        ("Then",),
    ]
    assert [[s.start_s for s in p.segments] for p in passages] == [[0, 1, 3], [4]]


def test_without_full_stops_segments_stand_alone() -> None:
    passages = passages_of([said("it was a long", 0), said("day and then", 1)])
    assert [p.sentences for p in passages] == [("it was a long",), ("day and then",)]


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        ("Das ist z. B. so. Ja!", "de", ["Das ist z. B. so.", "Ja!"]),
        ("你好。我们走吧。", "zh-Hans", ["你好。", "我们走吧。"]),
        ("no end", "en", ["no end"]),
        ("  ", "en", []),
    ],
)
def test_sentences(text: str, language: str, sentences: list[str]) -> None:
    assert split_sentences(text, language) == sentences


def test_ends_of_sentences() -> None:
    assert all(map(ends_sentence, ["Yes.", "Ja!“", "好。", "what?)", "है।", "好吗\uff1f", "好\uff01」"]))
    assert not any(map(ends_sentence, ["Yes", "3.5 million", ""]))


def test_what_the_guard_drops_of_the_transcript_stays_dropped() -> None:
    strict = DecodingOptions(max_tokens=12, guard=GuardOptions(max_characters_per_s=0.5))
    translations = read(Cascade(TinyFamily(), Reading()), speech([1.5]), ["es", "de"], strict)
    assert not translations["es"].segments
    [dropped] = translations["es"].dropped
    assert dropped.dropped == translations["de"].dropped[0].dropped
    assert dropped.text == ""
    assert dropped.source_text == translations["de"].dropped[0].text


def test_a_translation_much_longer_than_the_speech_is_dropped() -> None:
    lenient = GuardOptions(
        hopeless_mean_log_probability=-99,
        min_mean_log_probability=-99,
        max_compression_ratio=99,
        max_repetition=1,
        max_characters_per_s=99,
    )
    options = replace(OPEN, guard=replace(lenient, max_length_ratio=0.1))
    [dropped] = read(Cascade(TinyFamily(), Reading()), speech([1.5]), ["es"], options)["es"].dropped
    assert str(dropped.dropped).startswith("not a translation: ")
    options = replace(OPEN, guard=replace(lenient, max_length_ratio=9))
    assert read(Cascade(TinyFamily(), Reading()), speech([1.5]), ["es"], options)["es"].segments


def test_lengths_of_usual_translations_are_near_one() -> None:
    for text, source in [
        ("The train to Hamburg leaves from platform seven today.", "今天开往汉堡的列车从七号站台出发。"),
        (
            "हैम्बर्ग की ट्रेन आज सातवें प्लेटफार्म से निकलती है।",
            "The train to Hamburg leaves from platform seven today.",
        ),
        ("Da.", "Yes."),
    ]:
        assert 0.1 < length_ratio(text, source) < 1.2


def test_halves_that_do_not_fit() -> None:
    with pytest.raises(SprachbundError, match=r"reading reads .* none in common"):
        Cascade(TinyFamily(), Reading(read=["ja"]))
    with pytest.raises(SprachbundError, match="cannot be the second half"):
        Cascade(TinyFamily(), TinyFamily())
    mute = TinyFamily()
    mute.known_pairs = frozenset({("de", "en")})
    with pytest.raises(SprachbundError, match="cannot be the first half"):
        Cascade(mute, Reading())
    with pytest.raises(SprachbundError, match="is a cascade itself"):
        Cascade(Cascade(TinyFamily(), Reading()), Reading())


def test_tags_of_both_halves_meet() -> None:
    recogniser = TinyFamily()
    recogniser.known_pairs = frozenset((tag, tag) for tag in ("zh", "de", "fr"))
    reader = Reading(read=["zh-Hans", "zh-Hant", "de-Latn"])
    assert Cascade(recogniser, reader).pairs() == {
        ("zh", "zh"), ("de", "de"), ("fr", "fr"), ("zh", "es"), ("de", "es"),
    }  # fmt: skip


def test_a_language_that_the_translator_does_not_read_is_refused() -> None:
    with pytest.raises(SprachbundError, match="does not know the pair de to es"):
        read(Cascade(TinyFamily(), Reading(read=["fr"])), speech([1.0]), ["es"])


def test_a_directory_of_both_halves(tmp_path: Path) -> None:
    cascade = FAMILIES["cascade"](tmp_path / "made")
    save(cascade, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert loaded.pairs() == cascade.pairs()
    assert loaded.name == "cascade"
    assert isinstance(cascade, Cascade)
    assert isinstance(loaded, Cascade)
    for half in ("recogniser", "translator"):
        before, after = (getattr(one, half).state_dict() for one in (cascade, loaded))
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert (
        read(loaded, speech([1.2, 1.4]), ["fr"])["fr"].warnings
        == read(cascade, speech([1.2, 1.4]), ["fr"])["fr"].warnings
    )
    assert (
        load(tmp_path / "saved" / "recogniser", then=tmp_path / "saved" / "translator").pairs()
        == cascade.pairs()
    )
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "cascade", "recogniser": "recogniser"}')
    with pytest.raises(SprachbundError, match="translator"):
        load(tmp_path / "saved")


def test_the_hash_of_a_cascade_is_of_its_halves(tmp_path: Path) -> None:
    save(FAMILIES["cascade"](tmp_path / "made"), tmp_path / "saved")
    before = content_hash(tmp_path / "saved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    halves = {half: str(tmp_path / "saved" / half) for half in ("recogniser", "translator")}
    (elsewhere / "config.json").write_text(json.dumps({"model_type": "cascade", **halves}))
    assert content_hash(elsewhere) == before
    (tmp_path / "saved" / "translator" / "extra.json").write_text("{}")
    assert content_hash(tmp_path / "saved") == content_hash(elsewhere) != before


def test_a_draft_of_the_translator_changes_no_text(tmp_path: Path) -> None:
    """The translator drafts for itself, so that every draft token is accepted."""
    translator = make_checkpoint(tmp_path / "m2m", "m2m_100").model
    cascade = Cascade(TinyFamily(seed=0), translator)
    samples = speech([1.5, 1.0])
    wanted = sorted({target for _, target in cascade.pairs()} - {"de"})[:2]
    options = replace(OPEN, max_tokens=8)
    plain = read(cascade, samples, wanted, replace(options, translator_draft="none"))
    save(translator, tmp_path / "draft")
    drafted = read(cascade, samples, wanted, replace(options, translator_draft=str(tmp_path / "draft")))
    for target in wanted:
        assert drafted[target].text == plain[target].text != ""
        assert not plain[target].speculation
        [report] = drafted[target].speculation
        assert (report.target_language, report.draft) == (target, "model")
        assert report.accepted == report.checked > 0


@pytest.mark.parametrize("by", ["evaluation", "live", "texts"])
def test_a_draft_of_the_translator_is_kept_from_search_to_search(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns its acceptance, and is switched off where it gains nothing."""
    translator = make_checkpoint(tmp_path / "m2m", "m2m_100").model
    cascade = Cascade(TinyFamily(seed=0), translator)
    target = min({target for source, target in cascade.pairs() if source == "de"} - {"de"})
    save(translator, tmp_path / "draft")
    options = replace(OPEN, max_tokens=8, translator_draft=str(tmp_path / "draft"))
    drafts = []

    def noted(request: SearchRequest) -> list[list[Hypothesis]]:
        if request.family is translator:
            drafts.append(request.speculation)
        return run_search(request)

    run_search = SearchRequest.run
    monkeypatch.setattr(SearchRequest, "run", noted)
    if by == "evaluation":
        decoder = BatchDecoder(cascade, options)
        for number in range(2):
            decoder.decode([sound(1.0, number)], [[target]], ["de"])
    elif by == "texts":
        assert list(translate_texts(cascade, ["a b", "c d"], [target], "de", replace(options, batch_size=1)))
    else:
        engine = LiveEngine(cascade, options, activity=Loudness())
        run(engine, engine.open([target], "de", LiveOptions(policy="span")), speech([1.0, 1.0]))
    assert len(drafts) == 2
    assert drafts[0] is drafts[1] is not None


def test_the_draft_of_a_recogniser_is_not_for_texts() -> None:
    cascade = Cascade(TinyFamily(), Reading(read=["de"]))
    with pytest.raises(
        SprachbundError, match=r"draft is 'small', .* recogniser.*give it as translator_draft"
    ):
        translate_texts(cascade, ["ab"], ["es"], "de", DecodingOptions(draft="small"))
    for draft in ("auto", "none"):
        [[_]] = translate_texts(cascade, ["ab"], ["es"], "de", DecodingOptions(draft=draft))


def test_a_draft_of_a_translator_needs_a_cascade(tmp_path: Path) -> None:
    with pytest.raises(
        SprachbundError, match="translator_draft is 'small', and the model tiny is no cascade"
    ):
        read(TinyFamily(), speech([1.0]), ["de"], replace(OPEN, translator_draft="small"))
