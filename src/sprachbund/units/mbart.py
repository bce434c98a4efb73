"""A model of units that starts from mBART-50 (arXiv 2309.15826, section 3): its pieces of text beside ours of units.

The pieces that occur in the texts are kept, and single characters of these besides, so that no text is without pieces.
They become the text's SentencePiece model of new units with the same k-means; so nothing that reads units has to know.
Shapes: W tokens that may be written.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.io import locate
from sprachbund.models.tokens.config import MbartConfig
from sprachbund.models.tokens.directory import CONFIG, MODEL, Units, write_units
from sprachbund.models.tokens.mbart import (
    END,
    FIRST_PIECE,
    PAD,
    PIECES,
    UNKNOWN,
    TokenMbart,
    fill,
    language_row,
    piece_row,
    read_mbart,
    shape_of,
)
from sprachbund.models.tokens.reader import named, reader_for
from sprachbund.models.tokens.vocabulary import JointVocabulary
from sprachbund.text.tokenizer import language_token
from sprachbund.units.dataset import Sentences
from sprachbund.units.lengths import mean_length_ratio

_UNKNOWN_TYPE, _CONTROL_TYPE = 2, 3
"""Types of a piece in a SentencePiece model's file."""


def units_with_mbart(
    units: Units, checkpoint: str | Path, parts: Sequence[Sentences], languages: Sequence[str], out: Path
) -> Units:
    """Units with mBART's pieces of text in the place of their own; those that are there already are taken.

    Args:
        units: units with a vocabulary of two models.
        checkpoint: an mBART-50 of transformers, by path or Hugging Face id.
        parts: sentences whose texts are looked through.
        languages: BCP-47 tags that get a token.
        out: directory of the new units.

    Raises:
        SprachbundError: a vocabulary of one model, no file of pieces, a language that mBART-50 does not know, or a
            place with pieces of other texts.
    """
    if units.vocabulary.form != "union":
        raise SprachbundError(
            f"{units.directory} has one vocabulary for text and units; make the units with --form union"
        )
    for tag in languages:
        language_row(0, tag)
    pieces = prune_pieces(_pieces_file(checkpoint).read_bytes(), texts_of(parts), languages)
    if (out / CONFIG).exists():
        return _there(out, pieces)
    models = {"text": pieces, "units": (units.directory / f"units{MODEL}").read_bytes()}
    vocabulary = JointVocabulary(models, units.num_clusters, languages)
    options = units.config.options
    sizes = options.vocabulary.model_copy(update={"text_pieces": len(_processor(pieces))})
    config = units.config.model_copy(
        update={
            "options": options.model_copy(update={"vocabulary": sizes}),
            "languages": tuple(languages),
            "mean_length_ratio": _ratio(parts, vocabulary),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    return write_units(out, config, units.centroids, models)


def start_from_mbart(
    units: Units, checkpoint: str | Path, config_of: Callable[[Any], MbartConfig]
) -> TokenMbart:
    """A model with the weights of a checkpoint, and new rows for units.

    Args:
        units: as `units_with_mbart` made them.
        checkpoint: the same.
        config_of: makes a configuration of a shape.

    Raises:
        SprachbundError: see `read_mbart`.
    """
    path = _pieces_file(checkpoint)
    processor = _processor(path.read_bytes())
    original = read_mbart(path.parent, len(processor))
    config = named(config_of(shape_of(original.config)), units)
    with torch.device("meta"):
        model = TokenMbart(config, reader_for(config, units))
    fill(model, original, kept_rows(units, processor))
    return model


def kept_rows(units: Units, processor: Any) -> Tensor:
    """mBART's token (W,) of each token that may be written."""
    kept = _processor((units.directory / f"text{MODEL}").read_bytes())
    codes = {language_token(tag): language_row(len(processor), tag) for tag in units.config.languages}
    names = [kept.id_to_piece(number) for number in range(1, len(kept))]
    rows = [codes[name] if name in codes else piece_row(processor.piece_to_id(name)) for name in names]
    return torch.tensor([PAD, UNKNOWN, *rows, END])


def prune_pieces(model: bytes, texts: Iterable[str], languages: Sequence[str]) -> bytes:
    """A SentencePiece model with the pieces of some texts, their single characters, and tokens of languages.

    Texts of which all pieces are kept are cut as before: their best way is still there, and no better one is new.

    Raises:
        SprachbundError: no piece of it occurs.
    """
    messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # it has no types
    processor, proto = _processor(model), messages.ModelProto.FromString(model)
    used = {piece for text in texts for piece in processor.encode(text)} - set(range(FIRST_PIECE))
    if not used:
        raise SprachbundError("no piece of mBART occurs in the texts; look at the languages wanted")
    letters = {letter for piece in used for letter in processor.id_to_piece(piece)}
    kept = [
        piece
        for number, piece in enumerate(proto.pieces)
        if number >= FIRST_PIECE and (number in used or piece.piece in letters)
    ]
    tokens = [
        proto.SentencePiece(piece=language_token(tag), score=0.0, type=_CONTROL_TYPE) for tag in languages
    ]
    unknown = next(piece for piece in proto.pieces if piece.type == _UNKNOWN_TYPE)
    pruned = [type(piece).FromString(piece.SerializeToString()) for piece in (unknown, *kept, *tokens)]
    del proto.pieces[:]
    proto.pieces.extend(pruned)
    spec = proto.trainer_spec
    spec.vocab_size, spec.unk_id = len(pruned), 0
    spec.bos_id = spec.eos_id = spec.pad_id = -1
    del spec.control_symbols[:]
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def texts_of(parts: Iterable[Sentences]) -> set[str]:
    """All texts of sentences: transcripts or source texts, and translations."""
    sentences = (part[number] for part in parts for number in range(len(part)))
    return {text for s in sentences for text in (s.target, s.transcript, "" if s.spoken else s.source)}


def _ratio(parts: Iterable[Sentences], vocabulary: JointVocabulary) -> float | None:
    """Pieces of units for each piece of transcript; None without transcripts."""
    lengths = [
        (len(vocabulary.encode_units(s.source)), len(vocabulary.encode_text(s.transcript)))
        for part in parts
        if part.kind == "speech"
        for s in (part[number] for number in range(len(part)))
        if s.transcript
    ]
    return mean_length_ratio(*zip(*lengths, strict=True)) if lengths else None


def _there(out: Path, pieces: bytes) -> Units:
    units = Units(out)
    if (out / f"text{MODEL}").read_bytes() != pieces:
        raise SprachbundError(
            f"{out} holds pieces of other texts or another checkpoint; give the run another folder, or its old recipe"
        )
    return units


def _pieces_file(checkpoint: str | Path) -> Path:
    path = locate(checkpoint) / PIECES
    if not path.is_file():
        raise SprachbundError(f"{path} is missing; name an mBART-50 checkpoint with its SentencePiece model")
    return path


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)
