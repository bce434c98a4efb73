"""From spans to encoder states and languages: the first half of `sprachbund.decoding.pipeline`.

`encode_spans` runs the encoder once and identifies the languages that are not given (`encode_and_identify`, which texts
go through as well); models with layers split by language encode again where the answer changed.

Shapes: B utterances, L source languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.decoding.languages import UNDETERMINED, IdentifiedLanguage, LanguageTracker, text_log_probs
from sprachbund.decoding.recordings import RecordedSpan, given_language
from sprachbund.decoding.result import LanguageSpan
from sprachbund.decoding.search import search
from sprachbund.models.base import Family, Features, Memory, Target
from sprachbund.util.arrays import Samples


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageQuery:
    """The language of an utterance where it is known, and how to identify it otherwise.

    Attributes:
        known: the language, given by the caller or fixed by committed text; None where it is to be identified.
        allowed: languages that may be spoken, in the model's tags; None where any may.
        tracker: tracker of the recording or session; it is given the utterances in their order.
        ended: False for speech that goes on, which does not count for later utterances.
    """

    known: IdentifiedLanguage | None
    allowed: Sequence[str] | None
    tracker: LanguageTracker
    ended: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """A batch of B utterances after the encoder.

    Attributes:
        memory: memory of the utterances, encoded under their languages.
        languages: (B,) known or identified.
        log_probs: (B,) rows (L,) of log-probabilities by which they were identified; None for those that were known.
        identified: (B,) by the model, also where the language was known; None where it was not asked to.
        mixed: (B,) the languages spoken and when, of models with experts by language.
    """

    memory: Memory
    languages: list[IdentifiedLanguage]
    log_probs: list[Tensor | None]
    identified: list[IdentifiedLanguage | None]
    mixed: list[tuple[LanguageSpan, ...]]

    def select(self, rows: Sequence[int]) -> "EncodedBatch":
        """The utterances at the indices `rows` (b,)."""
        return EncodedBatch(
            memory=self.memory.select(torch.tensor(rows, dtype=torch.long, device=self.memory.states.device)),
            languages=[self.languages[b] for b in rows],
            log_probs=[self.log_probs[b] for b in rows],
            identified=[self.identified[b] for b in rows],
            mixed=[self.mixed[b] for b in rows],
        )


@torch.inference_mode()
def encode_spans(model: Family, spans: Sequence[RecordedSpan], *, identify_all: bool = False) -> EncodedBatch:
    """The first half of `translate_spans`: features, encoder, languages.

    Args:
        model: any family.
        spans: as in `translate_spans`.
        identify_all: as in `encode_and_identify`.
    """
    queries = [
        LanguageQuery(
            known=given_language(span.recording.request.source),
            allowed=span.recording.request.allowed,
            tracker=span.recording.tracker,
            ended=span.ended,
        )
        for span in spans
    ]
    features = model.features([span.samples for span in spans])
    durations_s = [len(span.samples) / SAMPLE_RATE for span in spans]
    return encode_and_identify(model, features, queries, durations_s, identify_all=identify_all)


@torch.inference_mode()
def encode_and_identify(
    model: Family,
    features: Features,
    queries: Sequence[LanguageQuery],
    durations_s: Sequence[float],
    *,
    identify_all: bool = False,
) -> EncodedBatch:
    """Run the encoder, and identify the languages that are not known.

    Languages that are known are compared with what the model hears, if it hears that on the way.

    Args:
        model: any family.
        features: features of B utterances, or of B texts.
        queries: (B,) in order of time where they share a tracker.
        durations_s: (B,) of the utterances; 0 for texts.
        identify_all: also identify the language where it is known, for `EncodedBatch.identified`; changes nothing else.
    """
    known = [query.known.language if query.known else None for query in queries]
    memory = encode(model, features, known, [query.allowed for query in queries])
    rows: list[Tensor | None] = [None] * len(queries)
    if identify_all or None in known or model.capabilities.hears_language:
        rows = list(_language_log_probs(model, memory))
    languages, identified = [], []
    for query, row in zip(queries, rows, strict=True):
        own = None
        if row is not None and (identify_all or query.known is None):
            # A known language or unfinished speech must not change how later utterances are identified.
            affects_later = query.ended and query.known is None
            own = query.tracker.push(row) if affects_later else query.tracker.peek(row)
        if row is not None and query.known is not None and query.ended:
            query.tracker.compare(row)
        language = query.known or own
        assert language is not None
        languages.append(language)
        identified.append(own)
    # A model split by language has encoded these under the language that it identified from one utterance alone.
    allowed = [query.allowed for query in queries]
    memory = encode_again(model, features, memory, [language.language for language in languages], allowed)
    return EncodedBatch(
        memory=memory,
        languages=languages,
        log_probs=[row if query.known is None else None for query, row in zip(queries, rows, strict=True)],
        identified=identified,
        mixed=language_spans(model, memory, durations_s),
    )


def spoken_log_probs(model: Family, samples: Samples) -> Tensor:
    """Log-probabilities (L,) of the language spoken in an utterance, in the order of `model.source_languages`.

    Args:
        model: any family.
        samples: samples (N,) at 16 kHz.
    """
    query = LanguageQuery(known=None, allowed=None, tracker=LanguageTracker(model.source_languages, None, 1))
    encoded = encode_and_identify(model, model.features([samples]), [query], [len(samples) / SAMPLE_RATE])
    (log_probs,) = encoded.log_probs
    assert log_probs is not None  # since the language is not known
    return log_probs


def _language_log_probs(model: Family, memory: Memory) -> Tensor:
    """Log-probabilities (B, L) of the language spoken; of a model that hears none, of the text that it writes."""
    languages = model.source_languages
    if not model.capabilities.language_from_text or len(languages) == 1:
        return model.language_log_probs(memory)
    # What the target says is not read by such a model.
    asked = [[Target(language=languages[0])]] * len(memory.states)
    texts = [model.decode_text(row[0].tokens) for row in search(model, memory, asked)]
    return torch.tensor([text_log_probs(text, languages) for text in texts])


def encode(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode utterances whose languages may be known.

    Args:
        model: any family.
        features: features of the utterances.
        languages: (B,) in the model's tags; None where it is to be identified, which costs a model that is split by
            language one pass of its split layers for every group.
        declared: (B,) in the model's tags, all languages that may occur in each utterance; None where any may. Experts
            of other languages are masked; models without such experts ignore it.

    Raises:
        SprachbundError: a language that the model's sharing plan has no group for.
    """
    known = _language_ids(model, features, languages)
    return model.encode(
        replace(
            features, source_language=known, declared=_declared_mask(model, features, languages, declared)
        )
    )


def encode_again(
    model: Family,
    features: Features,
    memory: Memory,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode again the utterances that were encoded under another language than the one identified.

    The spans before an utterance, or the languages allowed, can overrule what the encoder identified by itself.

    Args:
        model: any family.
        features: features of the B utterances.
        memory: result of `encode` for them.
        languages: (B,) identified, in the model's tags.
        declared: (B,) all languages that may occur, as in `encode`.

    Returns:
        The memory with the rows of those utterances replaced; `memory` itself where none changed.
    """
    if memory.source_language is None:
        return memory
    wanted = _language_ids(model, features, languages)
    wrong = ((wanted != memory.source_language) & (wanted != NO_LANGUAGE)).nonzero().flatten()
    if not len(wrong):
        return memory
    part = Features(values=features.values[wrong], num_frames=features.num_frames[wrong])
    rows = wrong.tolist()
    own = None if declared is None else [declared[b] for b in rows]
    return memory.with_rows(wrong, encode(model, part, [languages[b] for b in rows], own))


def language_spans(
    model: Family, memory: Memory, durations_s: Sequence[float]
) -> list[tuple[LanguageSpan, ...]]:
    """The languages spoken in each utterance and when, from models with experts by language; () from others.

    Args:
        model: any family.
        memory: memory of B utterances.
        durations_s: (B,) their lengths in seconds.
    """
    if (experts := model.capabilities.experts) is None:
        return [()] * len(durations_s)
    return [
        tuple(LanguageSpan(start_s=start_s, end_s=end_s, language=tag) for start_s, end_s, tag in spans)
        for spans in experts.spans(memory, durations_s)
    ]


def _language_ids(model: Family, features: Features, languages: Sequence[str | None]) -> Tensor:
    """Indices (B,) into the model's source languages; `NO_LANGUAGE` where the language is not known."""
    index_of = {tag: index for index, tag in enumerate(model.source_languages)}
    ids = [NO_LANGUAGE if tag in (None, UNDETERMINED) else index_of[str(tag)] for tag in languages]
    return torch.tensor(ids, device=features.values.device)


def _declared_mask(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None,
) -> Tensor | None:
    """Boolean (B, L): the languages declared and the one that is known; None where no language is ruled out."""
    if declared is None or model.capabilities.experts is None or all(tags is None for tags in declared):
        return None
    rows = [
        [tags is None or tag in tags or tag == known for tag in model.source_languages]
        for tags, known in zip(declared, languages, strict=True)
    ]
    return torch.tensor(rows, device=features.values.device)
