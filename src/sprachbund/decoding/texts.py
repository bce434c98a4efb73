"""Text to text, by families that read both: the same search as of speech, over what the encoder made of a text.

Shapes: B texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol, runtime_checkable

import torch

from sprachbund.decoding.encoding import encode
from sprachbund.decoding.language import UNDETERMINED, identify
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pairs import TRANSCRIBE, check_pair, read_request
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Features, Memory, Target


@runtime_checkable
class ReadsText(Protocol):
    """What a family has more, if it also reads text."""

    def text_features(self, texts: Sequence[str]) -> Features:
        """What the encoder is given of texts, in place of `Family.features` of speech."""
        ...


@dataclass(frozen=True, kw_only=True)
class TranslatedText:
    """A text in another language.

    Attributes:
        text: the translation; empty for a text of white space.
        source: language of the text, given or found out.
        target: language of the translation.
        log_probability: mean over its tokens; 0 for a text of white space.
    """

    text: str
    source: str
    target: str
    log_probability: float


def check_reads_text(family: Family) -> None:
    """Raises SprachbundError for a family that reads no text."""
    if not isinstance(family, ReadsText):
        raise SprachbundError(
            f"the model {family.name} turns speech into text, and cannot translate text; give it a recording, or take "
            "a model of speech units, which reads both"
        )


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
        source: language of the texts; None finds it out for each.
        options: how to decode; what is about speech is not looked at.

    Raises:
        SprachbundError: at once for a family that reads no text, for languages that it does not know; while
            iterating, for a pair that it does not know.
    """
    check_reads_text(family)
    options = options or DecodingOptions()
    request = read_request(family, source=source, targets=targets, allowed=options.allowed_languages)
    if TRANSCRIBE in request.targets:
        raise SprachbundError("text is not transcribed; name a language to translate into")
    starts = range(0, len(texts), options.batch_size)
    return (
        row
        for start in starts
        for row in _translate_batch(
            family, texts[start : start + options.batch_size], request.targets, request.source, options
        )
    )


@torch.inference_mode()
def _translate_batch(
    family: Family,
    texts: Sequence[str],
    targets: Sequence[str],
    source: str | None,
    options: DecodingOptions,
) -> list[list[TranslatedText]]:
    assert isinstance(family, ReadsText)
    features = family.text_features(texts)
    memory = encode(family, features, [source] * len(texts))
    languages = [source] * len(texts) if source else _languages(family, memory, options)
    for language, target in product(dict.fromkeys(languages), targets):
        check_pair(family, language, target)
    asked = [[Target(language=t, source=language) for t in targets] for language in languages]
    found = search(family, memory, asked, options)
    return [
        [
            TranslatedText(
                text=family.decode_text(hypothesis.tokens) if text.strip() else "",
                source=language,
                target=target.language,
                log_probability=hypothesis.mean_log_probability if text.strip() else 0.0,
            )
            for target, hypothesis in zip(group, row, strict=True)
        ]
        for text, language, group, row in zip(texts, languages, asked, found, strict=True)
    ]


def _languages(family: Family, memory: Memory, options: DecodingOptions) -> list[str]:
    """The language of each text, found out."""
    known, allowed = family.source_languages, options.allowed_languages
    found = [identify(row[None], known, allowed).language for row in family.language_log_probs(memory)]
    if UNDETERMINED in found:
        raise SprachbundError(
            f"the model {family.name} cannot tell the language of a text; name it with --from (source)"
        )
    return found
