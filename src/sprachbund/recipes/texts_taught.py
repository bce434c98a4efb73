"""Texts that a model's tokenizer cannot write whole, or that are longer than the model takes: counted, and said.

A model that was trained on other languages keeps its tokenizer, since its weights know its pieces. What a new language
has beside them, a letter that the old ones lack, is learned as unknown, and a reader sees "⁇" at most.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from sprachbund.data.loading import Corpus
from sprachbund.text.tokenizer import Tokenizer

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
