"""Searches and long form over a model split by language: the branch is that of the language named or found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.audio.spans import Span
from sprachbund.decoding import encoding
from sprachbund.decoding.encoding import LanguageQuery, encode, encode_again, encode_and_identify
from sprachbund.decoding.languages import LanguageTracker
from sprachbund.decoding.long_form import LongForm
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.words import align
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from tests.models import split_support as made
from tests.models.split_support import LANGUAGES

SOUNDS = made.make_sounds(8, seed=3)
SOURCES = ["de", "ru", "fr", "en", "ru", "de", "fr", "en"]


@pytest.fixture(scope="module")
def model():
    pairs = [f"{s}>{t}" for s in LANGUAGES for t in LANGUAGES]
    decoder = made.make_split(made.DECODER, side="pair", groups=(tuple(pairs[::2]), tuple(pairs[1::2])))
    return made.level_languages(made.make_split_model(made.make_split(), decoder))


def tokens(model, sounds, sources, options) -> list[list[tuple[int, ...]]]:
    with torch.inference_mode():
        memory = encode(model, model.features(sounds), sources)
    targets = [[Target(language=t, source=s) for t in ("ru", "de", "en")] for s in sources]
    return [[h.tokens for h in row] for row in search(model, memory, targets, options)]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_eight_utterances_of_mixed_languages_decode_as_they_do_alone(model, beam_size: int) -> None:
    options = DecodingOptions(beam_size=beam_size, max_tokens=12)
    together = tokens(model, SOUNDS, SOURCES, options)
    alone = [tokens(model, [x], [s], options)[0] for x, s in zip(SOUNDS, SOURCES, strict=True)]
    assert together == alone
    other = tokens(model, SOUNDS, SOURCES[1:] + SOURCES[:1], options)
    assert sum(a != b for a, b in zip(together, other, strict=True)) > 4  # a wrong branch shows


def test_words_are_aligned_under_the_same_branches(model) -> None:
    with torch.inference_mode():
        memory = encode(model, model.features(SOUNDS), SOURCES)
    targets = [[Target(language="en", source=s)] for s in SOURCES]
    options = DecodingOptions(max_tokens=6, min_tokens=6)
    hypotheses = search(model, memory, targets, options)
    rows = [[list(h.tokens) for h in row] for row in hypotheses]
    aligned = align(model, memory, targets, rows, [1.0] * len(SOUNDS))
    # The search's log-probabilities leave out suppressed tokens, so they are never lower.
    for row, (hypothesis,) in zip(aligned, hypotheses, strict=True):
        assert sum(row[0].log_probabilities) <= hypothesis.log_probability + 1e-3


def test_a_language_that_turned_out_otherwise_is_encoded_again(model) -> None:
    features = model.features(SOUNDS)
    with torch.no_grad():
        heard = encode(model, features, [None] * 8)
        again = encode_again(model, features, heard, SOURCES)
        wanted = encode(model, features, SOURCES)
        torch.testing.assert_close(again.states, wanted.states)
        assert heard.layer_means is not None
        assert not torch.allclose(heard.layer_means, wanted.layer_means)
        torch.testing.assert_close(again.layer_means, wanted.layer_means)
        assert again.num_frames.tolist() == wanted.num_frames.tolist()
        assert again.source_language.tolist() == wanted.source_language.tolist()
        same = encode_again(model, features, heard, [LANGUAGES[n] for n in heard.source_language])
    assert same is heard
    whole = made.make_model()
    memory = encode(whole, features, SOURCES)
    assert encode_again(whole, features, memory, SOURCES) is memory


def test_what_is_encoded_again_is_declared_again(model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []

    def spy(family: Any, features: Any, languages: Any, declared: Any = None) -> Any:
        asked.append([*zip(languages, declared, strict=True)])
        return encode(family, features, languages, declared)

    monkeypatch.setattr(encoding, "encode", spy)
    features = model.features(SOUNDS[:2])
    with torch.no_grad():
        heard = encode(model, features, [None] * 2)
        other = "ru" if LANGUAGES[int(heard.source_language[1])] != "ru" else "de"
        queries = [
            LanguageQuery(known=None, allowed=None, tracker=LanguageTracker(LANGUAGES, None, 1)),
            LanguageQuery(known=None, allowed=(other,), tracker=LanguageTracker(LANGUAGES, (other,), 1)),
        ]
        encode_and_identify(model, features, queries, [1.0, 1.0])
    assert asked == [[(None, None), (None, (other,))], [(other, (other,))]]


class Spans(LongForm):
    """Long form on spans that are given."""

    def run(self, sounds: list[np.ndarray]) -> list[tuple[str, str, str]]:
        spans = [
            (Span(start_s=20.0 * i, end_s=20.0 * i + len(x) / 16_000, speech_probability=1.0), x)
            for i, x in enumerate(sounds)
        ]
        return [(t, segment.source_language, segment.text) for t, segment in self._translate_batch(spans)]


def segments(model, source=None, allowed=None) -> list[tuple[str, str, str]]:
    options = DecodingOptions(allowed_languages=allowed, max_tokens=8)
    silence = np.zeros(16_000, np.float32)
    return Spans(model, silence, ["en", "ru"], source, options, sample_rate=16_000).run(SOUNDS)


def test_long_form_takes_the_branch_of_the_language_it_found(model) -> None:
    translated = segments(model)
    sources = [translated[2 * i][1] for i in range(len(SOUNDS))]
    assert len(set(sources)) > 1
    for i, source in enumerate(sources):
        assert segments(model, source)[2 * i : 2 * i + 2] == translated[2 * i : 2 * i + 2]


def test_allowed_languages_overrule_what_the_encoder_took_it_for(model) -> None:
    assert segments(model, allowed=("fr",)) == segments(model, "fr")


def test_a_language_without_a_group_is_named(model) -> None:
    small = made.make_split_model(made.make_split(groups=(("de",), ("en", "fr"))))
    with pytest.raises(SprachbundError, match="no group for 'ru'"):
        segments(small, "ru")
    with pytest.raises(SprachbundError, match="no group for 'ru'"):
        segments(small, allowed=("ru", "de"))
    assert {source for _, source, _ in segments(small, allowed=("de",))} == {"de"}


def test_a_decoder_split_by_the_source_needs_one(model) -> None:
    memory = encode(model, model.features(SOUNDS[:1]), ["de"])
    with pytest.raises(SprachbundError, match="name the source language"):
        search(model, replace(memory), [[Target(language="en")]])
