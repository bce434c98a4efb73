"""An mBART of transformers: its sizes, weights and tokens, as a model that reads tokens wants them.

Facts of mBART-50's tokens (arXiv 2008.00401): `<s>`, `<pad>`, `</s>`, `<unk>`, the pieces of its SentencePiece model
from its fourth on, each one later than there, codes of 52 languages, `<mask>`. Shapes: W tokens kept, D width.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.speech_llm.foreign import read_part
from sprachbund.models.token_mbart.model import TokenMbart
from sprachbund.models.token_mbart.shape import MbartShape
from sprachbund.nn.feed_forward import ACTIVATIONS

PIECES = "sentencepiece.bpe.model"
PAD, END, UNKNOWN = 1, 2, 3
FIRST_PIECE = 3
"""Of the SentencePiece model; before it are its own unknown, begin and end."""
_PIECES_LATER = 1
_EMBEDDING = "model.shared.weight"
_POSITIONS_LATER = 2
"""Rows of the tables of positions that no token gets."""


def _codes() -> list[str]:
    try:
        from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES
    except ImportError:
        raise SprachbundError(
            "mBART-50 checkpoints need the package transformers; run: pip install 'sprachbund[seamless]'"
        ) from None
    return list(FAIRSEQ_LANGUAGE_CODES)


def language_code(tag: str) -> str:
    """mBART-50's code of a language, by its first part. Raises SprachbundError for a language without."""
    codes = {code.split("_")[0]: code for code in _codes()}
    try:
        return codes[tag.split("-")[0]]
    except KeyError:
        raise SprachbundError(f"mBART-50 does not know {tag}; it knows {', '.join(sorted(codes))}") from None


def piece_row(piece: int) -> int:
    """mBART's token of a piece of its SentencePiece model."""
    return piece + _PIECES_LATER


def language_row(num_pieces: int, tag: str) -> int:
    """mBART's token of a language, its SentencePiece model having so many pieces."""
    return num_pieces + _PIECES_LATER + _codes().index(language_code(tag))


def read_mbart(directory: Path, num_pieces: int) -> Any:
    """A checkpoint in transformers' class, in fp32.

    Args:
        directory: as transformers writes it.
        num_pieces: of its SentencePiece model.

    Raises:
        SprachbundError: no checkpoint of mBART, one that is broken, or another number of tokens than mBART-50's.
    """
    from transformers import AutoConfig, MBartForConditionalGeneration

    config = read_part(AutoConfig, directory)
    if config.model_type != "mbart":
        raise SprachbundError(f"{directory} is of the type {config.model_type}; name an mBART-50 checkpoint")
    tokens = num_pieces + _PIECES_LATER + len(_codes()) + 1
    if config.vocab_size != tokens:
        raise SprachbundError(
            f"{directory} has {config.vocab_size} tokens, and mBART-50 with these {num_pieces} pieces would have "
            f"{tokens}; name an mBART-50 checkpoint, not one of another mBART"
        )
    return read_part(MBartForConditionalGeneration, directory, dtype=torch.float32)


def shape_of(config: Any) -> MbartShape:
    """The shape of a configuration of transformers. Raises SprachbundError for one that is not built here."""
    if config.activation_function not in ACTIVATIONS:
        raise SprachbundError(
            f"its activation is {config.activation_function}; {', '.join(ACTIVATIONS)} are built here"
        )
    return MbartShape(
        width=config.d_model,
        num_encoder_heads=config.encoder_attention_heads,
        num_decoder_heads=config.decoder_attention_heads,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=config.decoder_layers,
        encoder_feed_forward_width=config.encoder_ffn_dim,
        decoder_feed_forward_width=config.decoder_ffn_dim,
        activation=config.activation_function,
        scaled=config.scale_embedding,
        positions=config.max_position_embeddings,
        dropout=config.dropout,
    )


def fill(model: TokenMbart, foreign: nn.Module, rows: Tensor) -> None:
    """Give a model, built on the meta device, the weights of a checkpoint; what is new in it is drawn.

    Args:
        model: to be filled.
        foreign: `MBartForConditionalGeneration`.
        rows: (W,) its tokens, of each that the model may write.
    """
    theirs = foreign.state_dict()
    weights = {
        name: _taken(theirs[foreign_name(name)], name, rows)
        for name in model.state_dict()
        if name.startswith(("encoder.", "decoder."))
    }
    known = torch.from_numpy(~model.written.suppressed)
    known[model.end_token] = False
    pieces = weights["decoder.embedding.weight"][known]
    weights["unit_embedding.weight"] = new_rows(pieces, model.unit_embedding.num_embeddings)
    head = nn.Linear(pieces.shape[1], model.language_head.out_features)
    weights |= {f"language_head.{name}": value for name, value in head.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def new_rows(rows: Tensor, count: int) -> Tensor:
    """So many rows (., D) of a normal around the mean of `rows` (., D), in each of D places with their spread."""
    return rows.mean(0) + rows.std(0) * torch.randn(count, rows.shape[1])


_RENAMED = (
    (r"^decoder\.embedding\.weight$", _EMBEDDING),
    (r"^decoder\.logits_bias$", "final_logits_bias"),
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.positions$", ".embed_positions.weight"),
    (r"\.embedding_norm\.", ".layernorm_embedding."),
    (r"^(model\.\w+)\.norm\.", r"\1.layer_norm."),
    (r"\.self_norm\.", ".self_attn_layer_norm."),
    (r"\.cross_norm\.", ".encoder_attn_layer_norm."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".encoder_attn."),
    (r"\.feed_forward\.norm\.", ".final_layer_norm."),
    (r"\.feed_forward\.expand\.", ".fc1."),
    (r"\.feed_forward\.contract\.", ".fc2."),
    (r"attn\.query\.", "attn.q_proj."),
    (r"attn\.key\.", "attn.k_proj."),
    (r"attn\.value\.", "attn.v_proj."),
    (r"attn\.out\.", "attn.out_proj."),
)
"""Our names of parameters to those of transformers, one rule after the other."""


def foreign_name(name: str) -> str:
    """transformers' name of our parameter or buffer `name`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _taken(weight: Tensor, name: str, rows: Tensor) -> Tensor:
    if name == "decoder.embedding.weight":
        return weight[rows].clone()
    if name == "decoder.logits_bias":
        return weight[0, rows].clone()
    return weight[_POSITIONS_LATER:].clone() if name.endswith(".positions") else weight
