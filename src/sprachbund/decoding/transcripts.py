"""Translation of transcripts, sentence by sentence: the second half of a cascade.

A recogniser writes one row for each span, in the language spoken. Its segments are joined where a sentence goes on from
one to the next (`passages_of`), since a translator needs the whole of it. Every sentence is a row of the translator's
search (`translate_sentences`), and the rows are segments again at the end (`translated_span`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sprachbund.decoding.guard import compression_ratio, drop_reason, repetition, why_no_translation
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.recordings import options_of_translator
from sprachbund.decoding.result import Alternative, Segment, Word, joined_text
from sprachbund.decoding.segments import DecodedSpan, joined_hypothesis
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.texts import search_texts
from sprachbund.decoding.words import AttendedWord, attended_words
from sprachbund.models.base import Family, Translator
from sprachbund.text.languages import writes_spaces
from sprachbund.text.segmentation import ends_sentence, split_sentences


@dataclass(frozen=True, kw_only=True, eq=False)
class TranscriptPassage:
    """Segments of a transcript that are translated together: they end where a sentence ends.

    Attributes:
        segments: neighbours, none dropped.
        sentences: sentences of their texts.
    """

    segments: tuple[Segment, ...]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Text of all segments."""
        return joined_text(self.segments)


def passages_of(segments: Sequence[Segment]) -> list[TranscriptPassage]:
    """The kept segments of a transcript, joined where a sentence goes on.

    In a transcript without full stops, every segment stands alone: nothing says where a sentence ends.
    """
    kept = [segment for segment in segments if segment.dropped is None]
    sentences = [split_sentences(segment.text, segment.target_language) for segment in kept]
    punctuated = any(ends_sentence(sentence) for own in sentences for sentence in own)
    passages, open_segments = list[TranscriptPassage](), list[Segment]()
    for n, segment in enumerate(kept):
        open_segments.append(segment)
        if not punctuated or ends_sentence(segment.text) or n + 1 == len(kept):
            text = joined_text(open_segments)
            own = tuple(split_sentences(text, segment.target_language))
            passages.append(TranscriptPassage(segments=tuple(open_segments), sentences=own))
            open_segments = []
    return passages


@dataclass(frozen=True, kw_only=True, eq=False)
class Translated:
    """A translated sentence.

    Attributes:
        hypothesis: its row.
        words: words with the positions in the sentence that they were translated from; empty unless times are wanted.
    """

    hypothesis: Hypothesis
    words: list[AttendedWord]


def translate_sentences(
    translator: Translator,
    texts: Sequence[str],
    source: str,
    target: str,
    options: DecodingOptions,
    speculation: Speculation | None,
) -> list[Translated]:
    """Translate sentences, one row of the search for each.

    Args:
        translator: translator of the cascade.
        texts: sentences.
        source: their language, in the recogniser's tag.
        target: language wanted, in the translator's tag.
        options: options of the cascade.
        speculation: the translator's draft; made from the options if None.
    """
    own = options_of_translator(options)
    family, translated = translator.family, list[Translated]()
    for start in range(0, len(texts), own.batch_size):
        batch = texts[start : start + own.batch_size]
        rows = search_texts(
            family, batch, (target,), translator.languages[source], own, speculation=speculation
        )
        hypotheses = [row[0] for row in rows.hypotheses]
        words: list[list[AttendedWord]] = [[] for _ in batch]
        if options.word_timestamps:
            asked = [row[0] for row in rows.targets]
            words = attended_words(family, rows.memory, asked, [h.tokens for h in hypotheses], batch)
        translated += [
            Translated(hypothesis=hypothesis, words=read)
            for hypothesis, read in zip(hypotheses, words, strict=True)
        ]
    return translated


def translated_span(
    family: Family,
    heard: DecodedSpan,
    passages: Sequence[tuple[TranscriptPassage, Sequence[Translated]]],
    target: str,
    guard: GuardOptions,
) -> DecodedSpan:
    """A span of the transcript in another language; what the guard has dropped of the transcript stays dropped.

    Args:
        family: the translator.
        heard: the span as it was transcribed.
        passages: its passages, each with its sentences translated.
        target: language of the translation, in the translator's tag.
        guard: thresholds.
    """
    segments = [
        replace(
            segment,
            text="",
            words=(),
            target_language=target,
            source_text=segment.text,
            alternatives=(),
        )
        for segment in heard.segments
        if segment.dropped is not None
    ]
    for passage, sentences in passages:
        segments.append(_translated_segment(family, passage, sentences, target, guard))
    rows = [sentence.hypothesis for _, own in passages for sentence in own]
    return DecodedSpan(
        target=target,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        hypothesis=joined_hypothesis(rows) if rows else None,
    )


def _translated_segment(
    family: Family,
    passage: TranscriptPassage,
    sentences: Sequence[Translated],
    target: str,
    guard: GuardOptions,
) -> Segment:
    first, last = passage.segments[0], passage.segments[-1]
    rows = [sentence.hypothesis for sentence in sentences]
    row = joined_hypothesis(rows)
    space = " " if writes_spaces(target) else ""
    text = space.join(filter(None, (family.decode_text(h.tokens).strip() for h in rows)))
    return replace(
        first,
        end_s=last.end_s,
        target_language=target,
        text=text,
        source_text=passage.text,
        alternatives=(),
        words=_words_of_translation(passage, sentences),
        mean_log_probability=row.mean_log_probability,
        compression_ratio=compression_ratio(text),
        repetition=repetition(text),
        dropped=drop_reason(
            text,
            duration_s=last.end_s - first.start_s,
            speech_probability=first.speech_probability,
            no_speech_probability=first.no_speech_probability,
            mean_log_probability=row.mean_log_probability,
            source_text=passage.text,
            options=guard,
        )
        or (
            why_no_translation(text, passage.text, first.target_language, target)
            if guard.enabled and family.capabilities.follows_requests
            else None
        ),
        spans=tuple(span for segment in passage.segments for span in segment.spans),
    )


def _words_of_translation(passage: TranscriptPassage, sentences: Sequence[Translated]) -> tuple[Word, ...]:
    """Words of a translation, at the times of the words that they were translated from."""
    spoken = [word for segment in passage.segments for word in segment.words]
    # Letters up to each word of the transcript: they are the same in its words and its sentences, white space is not.
    ends = np.cumsum([_num_letters(word.text) for word in spoken])
    words: list[Word] = []
    before = 0
    for sentence, translated in zip(passage.sentences, sentences, strict=True):
        for word in translated.words:
            letter = before + _num_letters(sentence[: word.character])
            source = spoken[min(int(np.searchsorted(ends, letter, side="right")), len(spoken) - 1)]
            words.append(
                Word(start_s=source.start_s, end_s=source.end_s, text=word.text, probability=word.probability)
            )
        before += _num_letters(sentence)
    return tuple(words)


def _num_letters(text: str) -> int:
    return sum(not character.isspace() for character in text)


def best_pair(pairs: Sequence[tuple[DecodedSpan, DecodedSpan]], weight: float) -> DecodedSpan:
    """The translation of the best of pairs of a transcript and its translation; the others are its alternatives.

    A pair is ranked by the log-probability of the transcript, given the speech, plus `weight` times that of the
    translation, given the transcript. What the guard has left whole goes before what it has not.

    Args:
        pairs: transcripts of a span with their translations, at least one pair.
        weight: weight of the translation.
    """
    if len(pairs) == 1:
        return pairs[0][1]

    def score(pair: tuple[DecodedSpan, DecodedSpan]) -> float:
        parts = zip(pair, (1.0, weight), strict=True)
        return sum(w * one.hypothesis.log_probability for one, w in parts if one.hypothesis is not None)

    def whole(pair: tuple[DecodedSpan, DecodedSpan]) -> bool:
        return all(segment.dropped is None for segment in pair[1].segments)

    ranked = sorted(pairs, key=lambda pair: (whole(pair), score(pair)), reverse=True)
    best = ranked[0][1]
    others = tuple(
        Alternative(text=joined_text(pair[1].segments), log_probability=score(pair)) for pair in ranked[1:]
    )
    return replace(best, segments=(replace(best.segments[0], alternatives=others), *best.segments[1:]))
