"""SentencePiece models of a vocabulary, trained on texts and strings of units; the same bits every time."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.strings import holds_units, to_string
from sprachbund.models.tokens.unit_options import VocabularyOptions
from sprachbund.models.tokens.vocabulary import marked
from sprachbund.text.tokenizer import language_token

_LONGEST_BYTES = 1 << 24
"""Of a text; what is longer SentencePiece would leave out without a word."""
_AT_ONCE = 100
"""Units of a line: SentencePiece adds up in single precision, and finds hardly a piece in lines of thousands."""


def train_models(
    texts: Iterable[str],
    strings: Sequence[str],
    clusters: int,
    options: VocabularyOptions,
    languages: Sequence[str] = (),
) -> dict[str, bytes]:
    """The models of a vocabulary by name: `text` and `units`, or `joint` where it is one.

    Args:
        texts: of all languages that are read or written.
        strings: units as characters.
        clusters: K; every unit gets a piece, whether it was seen or not.
        options: see `VocabularyOptions`.
        languages: BCP-47 tags that get a token.

    Raises:
        SprachbundError: no texts or units, sizes that cannot be, or, for one model, texts whose characters stand
            for units.
    """
    options.check(clusters)
    lines = [marked(text) for text in texts if text.strip()]
    if not lines or not any(strings):
        what = "texts" if not lines else "units"
        raise SprachbundError(f"there are no {what} to make a vocabulary of; name data that hold some")
    tokens = [language_token(tag) for tag in languages]
    units = [string[i : i + _AT_ONCE] for string in strings for i in range(0, len(string), _AT_ONCE)]
    if options.form == "single":
        _refuse_unit_characters(lines, clusters)
        both = [*lines, *units, *each_unit(clusters)]
        return {"joint": _train(both, options.unit_pieces + options.text_pieces, control_symbols=tokens)}
    seen = [] if not options.unit_pieces else units
    kind = "unigram" if options.unit_pieces else "char"
    return {
        "text": _train(lines, options.text_pieces, control_symbols=tokens),
        "units": _train([*seen, *each_unit(clusters)], options.unit_pieces or clusters + 1, model_type=kind),
    }


def each_unit(clusters: int) -> Iterator[str]:
    """A string for each unit: what is seen gets a piece."""
    return (to_string([unit]) for unit in range(clusters))


def _refuse_unit_characters(texts: Sequence[str], clusters: int) -> None:
    held = [text for text in texts if holds_units(text, clusters)]
    if held:
        raise SprachbundError(
            f"{len(held)} of {len(texts)} texts hold characters that stand for units, the first is "
            f"{held[0].strip()!r}; one vocabulary for both cannot tell them apart, give --form union"
        )


def _train(lines: Sequence[str], size: int, *, model_type: str = "unigram", **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            hard_vocab_limit=False,
            max_sentence_length=_LONGEST_BYTES,
            num_threads=1,  # several add up in any order
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SprachbundError(
            f"SentencePiece cannot make {size} pieces ({reason}); ask for another number"
        ) from error
    return model.getvalue()
