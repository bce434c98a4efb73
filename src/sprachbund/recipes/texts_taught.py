"""Texts that a model's tokenizer cannot write whole, or that are longer than the model takes or CTC can align: counted,
and said.

A model that was trained on other languages keeps its tokenizer, since its weights know its pieces. What a new language
has beside them, a letter that the old ones lack, is learned as unknown, and a reader sees "⁇" at most.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from sprachbund.data.loading import Corpus
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.units.lengths import ctc_places

_MOST = 20_000
_SHOWN = 12
_WORD_BEGINS = "\u2581"


def texts_taught(corpus: Corpus) -> Iterator[str]:
    """Texts that utterances of a corpus can be taught with: of all of them, or of 20,000 evenly over it."""
    for manifest in corpus.manifests:
        step = -(-len(manifest) * len(corpus.manifests) // _MOST) or 1
        for index in range(0, len(manifest), step):
            utterance = manifest[index]
            for language in corpus.targets:
                text = utterance.text_in(language) if utterance.language else None
                if text and corpus.examples.row(text, utterance.language, language) is not None:
                    yield text


def too_long_for_frames(corpus: Corpus, frame_s: float) -> list[str]:
    """What is to be said of transcripts that CTC cannot align: nothing where it can align all.

    They are most of the speech where frames are long and pieces short, and the encoder then learns next to nothing.

    Args:
        corpus: all of its utterances are looked at, or 20,000 evenly over it.
        frame_s: seconds of an encoder's frame.
    """
    count, found, first = 0, 0, ""
    for manifest in corpus.manifests:
        step = -(-len(manifest) * len(corpus.manifests) // _MOST) or 1
        for index in range(0, len(manifest), step):
            utterance = manifest[index]
            needed = ctc_places(corpus.examples.transcript(utterance.text))
            there = math.ceil(float(manifest.durations_s[index]) / frame_s)
            count += needed > 0
            if needed > there:
                found += 1
                first = first or f"{utterance.id}, {needed} places wanted and {there} there"
    if not found:
        return []
    return [
        f"{found} of {count} transcripts are longer than CTC can align in frames of {1000 * frame_s:g} ms (the first "
        f"is {first}): it learns nothing from them; a larger transcript_vocabulary_size makes shorter ones"
    ]


def told(texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """What is to be said of texts: nothing where all can be learned as they are.

    Args:
        texts: to be taught.
        tokenizer: of the model.
        max_tokens: most tokens of a text.
    """
    count, partly, too_long, lacking = 0, 0, 0, Counter[str]()
    for text in texts:
        count += 1
        unknown = "".join(tokenizer.unknown(text))
        lacking.update(unknown.replace(_WORD_BEGINS, ""))
        partly += bool(unknown)
        too_long += len(tokenizer.encode(text)) > max_tokens
    lines = []
    if partly:
        most = " ".join(letter for letter, _ in lacking.most_common(_SHOWN)) + " …" * (len(lacking) > _SHOWN)
        lines.append(
            f"{partly} of {count} texts hold what the tokenizer has no piece for ({most}): it is learned as "
            "unknown (⁇) and cannot be written"
        )
    if too_long:
        lines.append(f"{too_long} of {count} texts are longer than {max_tokens} tokens: left out")
    return lines
