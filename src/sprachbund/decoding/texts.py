"""Text in place of speech: what an encoder makes of a text goes through the same search as what it makes of sound.

Shapes: B texts, n targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from zlib import crc32

import torch

from sprachbund.decoding.encoding import LanguageQuery, encode_and_identify
from sprachbund.decoding.languages import UNDETERMINED, LanguageTracker, Request, check_pair, read_request
from sprachbund.decoding.options import AUTO, NONE, TRANSCRIBE, DecodingOptions, check_options
from sprachbund.decoding.recordings import given_language, make_target, options_with_drafts
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.written_form import check_writing, text_in_digits, text_with_marks
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target, TextInput
from sprachbund.models.punctuation import load_punctuator
from sprachbund.util.options import OptionValueError


@dataclass(frozen=True, kw_only=True)
class TranslatedText:
    """A text in another language.

    Attributes:
        text: the translation; empty for a text of white space.
        source: language of the text, given or identified.
        target: language of the translation.
        log_probability: mean over its tokens; 0 for a text of white space.
    """

    text: str
    source: str
    target: str
    log_probability: float


def check_reads_text(family: Family) -> TextInput:
    """The text input of a family. Raises SprachbundError where it has none."""
    if (text_input := family.capabilities.text_input) is None:
        raise SprachbundError(
            f"the model {family.name} turns speech into text, and cannot translate text; give it a recording, or take "
            "a translator of texts, such as m2m100-418m"
        )
    return text_input


def translate_texts(
    family: Family,
    texts: Sequence[str],
    targets: Sequence[str],
    source: str | None = None,
    options: DecodingOptions | None = None,
) -> Iterator[list[TranslatedText]]:
    """Translate texts; for each, in order, one translation for each target.

    Args:
        family: a model that reads text.
        texts: sentences; each is one row of the search, none is cut.
        targets: languages wanted, as tags or names.
        source: language of the texts; None identifies it for each.
        options: decoding options. The guard and the spans apply to speech alone, and have no effect here.

    Raises:
        SprachbundError: at once for a family that reads no text, for unknown languages and for options that are of
            speech or that it cannot serve; while iterating for a pair that the model does not know.
    """
    check_reads_text(family)
    options = options or DecodingOptions()
    if (translator := family.capabilities.translator) is not None:
        if options.draft not in (AUTO, NONE):
            raise OptionValueError(
                "draft",
                options.draft,
                "give it as `translator_draft`, or leave it out",
                reason="which is for the recogniser of a cascade, and a text is read by its translator",
            )
        family = translator.family
        options = replace(options, draft=options.translator_draft, translator_draft=AUTO)
    if options.word_timestamps:
        raise OptionValueError(
            "word_timestamps", True, "leave it out", reason="and words of a text have no times"
        )
    if options.prompt:
        raise SprachbundError("a text is translated without a prompt; leave it out")
    if options.nbest > 1:
        raise OptionValueError("nbest", options.nbest, "leave it out", reason="and a text is translated once")
    check_options(family, options)
    request = read_request(family, source=source, targets=targets, allowed=options.allowed_languages)
    check_writing(family, request.targets, options)
    if TRANSCRIBE in request.targets:
        raise SprachbundError("text is not transcribed; name a language to translate into")
    options, drafts = options_with_drafts(family, options)
    starts = range(0, len(texts), options.batch_size)
    return (
        row
        for start in starts
        for row in _translate_text_batch(
            family, texts[start : start + options.batch_size], request, options, drafts.own
        )
    )


def _translate_text_batch(
    family: Family,
    texts: Sequence[str],
    request: Request,
    options: DecodingOptions,
    speculation: Speculation | None,
) -> list[list[TranslatedText]]:
    rows = search_texts(
        family,
        texts,
        request.targets,
        request.source,
        options,
        request.allowed,
        speculation=speculation,
    )

    def written(hypothesis: Hypothesis, target: str) -> str:
        text = family.decode_text(hypothesis.tokens)
        if options.digits:
            text = text_in_digits(text, target)
        if options.punctuate is not None:
            text = text_with_marks(text, target, load_punctuator(options.punctuate))
        return text

    return [
        [
            TranslatedText(
                text=written(hypothesis, target) if text.strip() else "",
                source=language,
                target=target,
                log_probability=hypothesis.mean_log_probability if text.strip() else 0.0,
            )
            for target, hypothesis in zip(request.targets, row, strict=True)
        ]
        for text, language, row in zip(texts, rows.languages, rows.hypotheses, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRows:
    """A batch of texts after the search.

    Attributes:
        memory: memory of the texts.
        languages: (B,) of the texts, given or identified.
        targets: (B,) rows (n,), what was asked of the decoder.
        hypotheses: (B,) rows (n,), one for each target.
    """

    memory: Memory
    languages: list[str]
    targets: list[list[Target]]
    hypotheses: list[list[Hypothesis]]


@torch.inference_mode()
def search_texts(
    family: Family,
    texts: Sequence[str],
    targets: Sequence[str],
    source: str | None,
    options: DecodingOptions,
    allowed: Sequence[str] | None = None,
    *,
    prefixes: Sequence[tuple[int, ...]] | None = None,
    speculation: Speculation | None = None,
) -> TextRows:
    """Encode and decode a batch of texts.

    Args:
        family: a model that reads text.
        texts: (B,), each one row for every target.
        targets: target languages in the model's tags.
        source: language of the texts, in the model's tag; None identifies it for each.
        options: decoding options.
        allowed: languages to choose from.
        prefixes: (B,) tokens that each translation begins with; none if None.
        speculation: the draft; made from the options if None.

    Raises:
        SprachbundError: a language that cannot be identified, or a pair that the model does not know.
    """
    # Every text is identified by itself: each has a tracker of its own.
    queries = [
        LanguageQuery(
            known=given_language(source),
            allowed=allowed,
            tracker=LanguageTracker(family.source_languages, allowed, 1),
        )
        for _ in texts
    ]
    features = check_reads_text(family).text_features(texts)
    encoded = encode_and_identify(family, features, queries, [0.0] * len(texts))
    languages = [identified.language for identified in encoded.languages]
    if UNDETERMINED in languages:
        raise SprachbundError(
            f"the model {family.name} cannot identify the language of a text; name it with --from (source)"
        )
    for language, target in product(dict.fromkeys(languages), targets):
        check_pair(family, language, target)
    asked = [[make_target(family, options, target, language) for target in targets] for language in languages]
    if prefixes is not None:
        asked = [
            [replace(target, prefix=prefix) for target in row]
            for row, prefix in zip(asked, prefixes, strict=True)
        ]
    names = [crc32(text.encode()) for text in texts]
    hypotheses = search(family, encoded.memory, asked, options, speculation=speculation, utterances=names)
    return TextRows(memory=encoded.memory, languages=languages, targets=asked, hypotheses=hypotheses)
