"""Tokens of a foreign checkpoint as a tokenizer of ours: blank, end, unknown and languages first, then theirs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import BLANK, END, UNKNOWN, Tokenizer, language_token

_NORMAL, _UNKNOWN, CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece's types of pieces
_BPE = 2


@dataclass(frozen=True, kw_only=True)
class ForeignPieces:
    """Pieces in the order of a checkpoint's tokens.

    Attributes:
        model: SentencePiece's description (a protobuf of its class ModelProto), whose pieces are theirs.
    """

    model: Any

    def __len__(self) -> int:
        return len(self.model.pieces)


def read_sentencepiece(data: bytes, place: str) -> ForeignPieces:
    """Of a SentencePiece model file. Raises SprachbundError for what is none."""
    model = empty_pieces()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own kinds differ by version
        raise SprachbundError(f"{place} holds no SentencePiece model; copy it again") from error
    if not model.pieces:
        raise SprachbundError(f"{place} holds a SentencePiece model without pieces; copy it again")
    return ForeignPieces(model=model)


def from_merges(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], count: int) -> ForeignPieces:
    """Of a byte-pair tokenizer in the form of the package tokenizers: the first `count` tokens.

    SentencePiece joins the pair whose piece has the best score, so a piece's score is minus the rank of its merge.

    Raises:
        SprachbundError: numbers without a piece.
    """
    by_number = {number: piece for piece, number in vocabulary.items()}
    if missing := [number for number in range(count) if number not in by_number]:
        raise SprachbundError(
            f"the tokenizer has no piece number {missing[0]}; the model has {count} and a blank"
        )
    ranks = {"".join(pair): rank for rank, pair in enumerate(merges)}
    model = empty_pieces()
    model.trainer_spec.model_type = _BPE
    model.normalizer_spec.name = "identity"
    for number in range(count):
        piece = by_number[number]
        kind = _kind(piece, ranks)
        score = -float(ranks.get(piece, len(ranks))) if kind == _NORMAL else 0.0
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.byte_fallback = any(piece.type == _BYTE for piece in model.pieces)
    return ForeignPieces(model=model)


def _kind(piece: str, ranks: Mapping[str, int]) -> int:
    if piece == "<unk>":
        return _UNKNOWN
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return _BYTE
    special = piece.startswith("<") and piece.endswith(">") and piece not in ranks
    return CONTROL if special and len(piece) > 2 else _NORMAL


def own_tokenizer(pieces: ForeignPieces, languages: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer of ours that has all their pieces, and the place in it of each of theirs."""
    model = empty_pieces()
    model.CopyFrom(pieces.model)
    del model.pieces[:]
    own = ["<pad>", "</s>", "<unk>", *map(language_token, languages)]
    for number, name in enumerate(own):
        model.pieces.add(piece=name, score=0.0, type=_UNKNOWN if number == UNKNOWN else CONTROL)
    places = []
    for piece in pieces.model.pieces:
        if piece.type == _UNKNOWN:
            places.append(UNKNOWN)
            continue
        places.append(len(model.pieces))
        # A control token of theirs may have the name of one of ours; nobody asks for theirs by name.
        name = piece.piece + "*" * (piece.piece in own)
        model.pieces.add(piece=name, score=piece.score, type=piece.type)
    spec = model.trainer_spec
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = BLANK, END, UNKNOWN, -1
    spec.pad_piece, spec.eos_piece, spec.unk_piece = own[:3]
    spec.vocab_size = len(model.pieces)
    return Tokenizer(model.SerializeToString(), languages), places


def empty_pieces() -> Any:
    """A SentencePiece description (ModelProto) of nothing. Raises SprachbundError where protobuf is not installed."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as described
    except ImportError as error:
        raise SprachbundError(
            "taking a tokenizer apart needs the package protobuf; run: pip install protobuf"
        ) from error
    made: Any = described  # its classes are made when it is imported
    return made.ModelProto()
