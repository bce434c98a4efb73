"""Spans of several recordings in one batch become what each becomes alone."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span
from sprachbund.decoding.languages import LanguageTracker, read_request
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pipeline import NOT_OF_THE_SEARCH, translate_spans
from sprachbund.decoding.recordings import Drafts, RecordedSpan, RecordingState
from sprachbund.decoding.search import SearchRequest
from tests.decoding.test_translate import LENIENT, recording
from tests.decoding.tiny_family import TinyFamily

FAMILY = TinyFamily(seed=3)
PLAIN = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, draft="none")


def asked(targets, source=None, options=PLAIN, family=FAMILY) -> RecordingState:
    request = read_request(family, source=source, targets=targets, allowed=options.allowed_languages)
    tracker = LanguageTracker(family.source_languages, request.allowed, options.language_windows)
    return RecordingState(request=request, options=options, tracker=tracker)


def spans_of(one: RecordingState, *seeds: int) -> list[RecordedSpan]:
    spans = []
    for number, seed in enumerate(seeds):
        duration_s = 0.6 + 0.3 * (seed % 5)
        samples = recording((0.0, duration_s), duration_s=duration_s, seed=seed)
        span = Span(
            start_s=6.0 * number, end_s=6.0 * number + len(samples) / SAMPLE_RATE, speech_probability=1.0
        )
        spans.append(RecordedSpan(recording=one, span=span, samples=samples))
    return spans


requests = st.tuples(
    st.lists(st.sampled_from(["de", "en", "fr", "transcribe"]), min_size=1, max_size=3, unique=True),
    st.sampled_from([None, "de", "en"]),
    st.sampled_from(
        [
            PLAIN,
            replace(PLAIN, word_timestamps=True),
            replace(PLAIN, beam_size=2),
            replace(PLAIN, prompt="abc"),
            replace(PLAIN, max_tokens=3),
            replace(PLAIN, allowed_languages=("fr", "de")),
        ]
    ),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
).filter(lambda asked: asked[1] is None or asked[2].allowed_languages is None)


@settings(max_examples=15, deadline=None)
@given(st.lists(requests, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_neighbours_change_nothing(several, random):
    alone = [
        translate_spans(FAMILY, spans_of(asked(targets, source, options), *seeds))
        for targets, source, options, seeds in several
    ]
    queues = [
        spans_of(asked(targets, source, options), *seeds) for targets, source, options, seeds in several
    ]
    places = [number for number, queue in enumerate(queues) for _ in queue]
    random.shuffle(places)  # any order that keeps each recording's own
    together = translate_spans(FAMILY, [queues[number].pop(0) for number in places])
    for number, expected in enumerate(alone):
        own = [answers for place, answers in zip(places, together, strict=True) if place == number]
        assert [[(t, s.text, s.source_language, s.start_s) for t, s in answers] for answers in own] == [
            [(t, s.text, s.source_language, s.start_s) for t, s in answers] for answers in expected
        ]
        words = [[w.text for _, s in answers for w in s.words] for answers in own]
        assert words == [[w.text for _, s in answers for w in s.words] for answers in expected]


def test_one_encoder_pass_serves_all_recordings():
    family, sizes = TinyFamily(seed=3), []
    encode = family.encode
    family.encode = lambda features: sizes.append(len(features.num_frames)) or encode(features)
    first, second = asked(["de"], "en", family=family), asked(["fr", "en"], family=family)
    translate_spans(family, [*spans_of(first, 1, 2), *spans_of(second, 3)])
    assert sizes == [3]


def test_recordings_with_the_same_wishes_share_a_search():
    family = TinyFamily(seed=3)
    recordings = [asked([target], "en", family=family) for target in ("de", "fr")]
    translate_spans(family, [span for one in recordings for span in spans_of(one, 1)])
    assert max(rows for rows, _ in family.steps) == 2


@pytest.mark.parametrize("half", ["own", "translator"])
def test_recordings_share_a_search_only_with_the_drafts_they_share(monkeypatch, half):
    groups = []

    def recorded(request):
        groups.append(len(request.targets))
        return run(replace(request, speculation=None))

    run = SearchRequest.run
    monkeypatch.setattr(SearchRequest, "run", recorded)
    shared, own = object(), object()
    recordings = [asked(["de"], "en"), asked(["fr"], "en"), asked(["de"], "en")]
    for one, speculation in zip(recordings, (shared, shared, own), strict=True):
        one.drafts = Drafts(**{half: speculation})
    translate_spans(FAMILY, [span for one in recordings for span in spans_of(one, 1)])
    assert groups == [2, 1]


def test_a_recording_that_cannot_go_on_leaves_its_neighbours_alone():
    family = TinyFamily(seed=3)
    family.language_log_probs = lambda memory: memory.states.new_zeros(memory.states.shape[0], 3)
    lost, fine = asked(["transcribe"], family=family), asked(["de"], "en", family=family)
    crowded = asked(["de"], "en", replace(PLAIN, prompt="a" * 40), family=family)
    everything = [*spans_of(lost, 1), *spans_of(fine, 2), *spans_of(crowded, 3)]
    segments = translate_spans(family, everything)
    assert "name the source language" in str(lost.error)
    assert "shorten the prompt" in str(crowded.error)
    assert (segments[0], segments[2], fine.error) == ([], [], None)
    assert segments[1][0][1].text == translate_spans(family, spans_of(asked(["de"], "en"), 2))[0][0][1].text


@pytest.mark.parametrize("source", [None, "en"])
def test_what_a_recording_could_not_be_is_kept_by_it(source):
    family = TinyFamily(seed=3)
    family.known_pairs -= {("en", "fr"), ("de", "fr"), ("fr", "de")}
    one = RecordingState(
        request=read_request(family, source=source, targets=["de", "en"], allowed=None),
        options=PLAIN,
        tracker=LanguageTracker(family.source_languages, None, 3),
    )
    segments = translate_spans(family, spans_of(one, *range(6)))
    assert [target for answers in segments for target, _ in answers] == ["de", "en"] * 6
    unknown = [s for answers in segments for _, s in answers if (s.dropped or "").startswith("unknown pair")]
    assert bool(unknown) == ("de" in one.refused)


def test_recordings_that_ask_for_another_search_are_not_searched_together(monkeypatch) -> None:
    """Every field of the options either separates recordings, or is named as no part of the search."""
    names = {one.name for one in fields(DecodingOptions)}
    others = {"beam_size": 2, "length_penalty": 0.5, "min_tokens": 2, "max_tokens": 5, "timestamps": False}
    others |= {"temperature": (0.0, 0.5), "sampling_seed": 3}
    # What the other option needs, to have a meaning.
    bases = {
        "length_penalty": replace(PLAIN, beam_size=2),
        "sampling_seed": replace(PLAIN, temperature=(0.5,)),
    }
    # The last ones separate recordings too; this family serves no glossary, has no transducer and spells no words,
    # words cost another pass, several texts need a beam, and what is of a translator needs a cascade.
    more = {"word_timestamps", "glossary", "hot_words", "nbest", "translation_weight"}
    more |= {"max_symbols", "hot_words_weight"}
    assert names == NOT_OF_THE_SEARCH | others.keys() | more, (
        "a new field belongs into NOT_OF_THE_SEARCH of decoding/pipeline.py, or into `others` with a value"
    )
    calls = []

    def counting(request):
        calls.append(len(request.targets))
        return run(request)

    run = SearchRequest.run
    monkeypatch.setattr(SearchRequest, "run", counting)
    for name, value in others.items():
        calls.clear()
        base = bases.get(name, PLAIN)
        pair = [asked(["de"], "en", base), asked(["de"], "en", replace(base, **{name: value}))]
        translate_spans(FAMILY, [span for one in pair for span in spans_of(one, 1)])
        assert calls == [1, 1], name
