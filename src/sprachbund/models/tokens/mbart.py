"""One mBART for speech translation and text translation: its own pieces of text, and units as further pieces.

Rows of text are mBART's own and serve input and output; those of units are new, are read only, and are a parameter of
their own, so that they can learn at a rate of their own (arXiv 2309.15826; 2008.00401). As in mBART-50 a source begins
with the token of its language and a target with the end and the token of its language. Where the source language is not
known, a layer detects it from the mean of the embedded tokens, before the encoder reads them. The sections are the
model, and its start from a checkpoint of transformers. Shapes: B utterances, R rows, S source tokens, D
width, L source languages, W tokens that may be written.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import LANGUAGE, Features, HeadLoss, Loss, Memory, Target
from sprachbund.models.speech_llm.checkpoints import read_part
from sprachbund.models.tokens.config import MbartConfig, MbartShape
from sprachbund.models.tokens.conformer import decoder_loss, language_loss
from sprachbund.models.tokens.text_input import Reader, ReadsTokens
from sprachbund.models.translation import checkpoints
from sprachbund.models.translation.checkpoints import as_ours, transformers_name
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.text_to_text import MbartDecoder, MbartEncoder, embedding
from sprachbund.text.languages import primary


class TokenMbart(ReadsTokens):
    """Translator of tokens; satisfies `sprachbund.models.base.Family`, and translates text besides.

    Args:
        config: shape, languages and units.
        reader: turns speech and text into tokens.

    Raises:
        SprachbundError: a language for which the vocabulary has no token.
    """

    name = "token_mbart"
    _is_unit: Tensor
    _rows: Tensor
    _source_tokens: Tensor

    def __init__(self, config: MbartConfig, reader: Reader) -> None:
        super().__init__(config, reader)
        self.max_tokens, self.frame_s = config.max_tokens, config.frame_s
        self.encoder = MbartEncoder(config)
        self.decoder: MbartDecoder = MbartDecoder(len(self.written), config)
        is_unit = torch.from_numpy(reader.vocabulary.is_unit.copy())
        self.unit_embedding = embedding(int(is_unit.sum()), config)
        self.language_head = nn.Linear(config.width, len(self.source_languages))
        table_rows = torch.where(is_unit, is_unit.cumsum(0), (~is_unit).cumsum(0)) - 1
        sources = torch.from_numpy(self.written.ids)[
            [self.written.language(t) for t in self.source_languages]
        ]
        for name, known in (("_is_unit", is_unit), ("_rows", table_rows), ("_source_tokens", sources)):
            self.register_buffer(name, known, persistent=False)

    def encode(self, features: Features) -> Memory:
        """Run the encoder; languages that are not given are detected. The states are (B, S + 1, D)."""
        log_probs = self.source_log_probs(features.values, features.num_frames)
        detected, given = log_probs.argmax(-1), features.source_language
        language = detected if given is None else torch.where(given == NO_LANGUAGE, detected, given)
        return self._encode(features.values, features.num_frames, language, log_probs)

    def source_log_probs(self, tokens: Tensor, num_tokens: Tensor) -> Tensor:
        """Log-probabilities (B, L) of the language of tokens (B, S); the embedding learns nothing of it."""
        embedded = self.embed(tokens).detach()
        valid = valid_frames(num_tokens, tokens.shape[1])[..., None]
        mean = (embedded * valid).sum(1) / num_tokens[:, None]
        return self.language_head(mean).float().log_softmax(-1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedded (B, S, D) tokens (B, S) of the joint vocabulary."""
        is_unit, table_rows = self._is_unit[tokens], self._rows[tokens]
        known = self.decoder.embedding(table_rows.masked_fill(is_unit, 0))
        new = self.unit_embedding(table_rows.masked_fill(~is_unit, 0))
        return torch.where(is_unit[..., None], new, known)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, L) of the language spoken or read."""
        assert memory.language_log_probs is not None
        return memory.language_log_probs

    def prompt(self, target: Target) -> list[int]:
        """The end and the language token. Raises SprachbundError for a language it does not write."""
        return [self.end_token, self.language_tokens[self.target_index(target.language)]]

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the targets, and of the source languages."""
        tokens, num_tokens = batch.features, batch.num_frames
        log_probs = self.source_log_probs(tokens, num_tokens)
        known = torch.where(batch.source_language == NO_LANGUAGE, log_probs.argmax(-1), batch.source_language)
        memory = self._encode(tokens, num_tokens, known, log_probs)
        prompts = [[self.end_token, token] for token in batch.target_language.tolist()]
        main = decoder_loss(self, batch, memory, prompts).sum()
        language = language_loss(log_probs, batch)
        return Loss(
            total=main + self.config.language_weight * language,
            attention=main,
            num_tokens=int(batch.num_targets.sum()),
            heads={LANGUAGE: HeadLoss(language.detach(), batch.num_utterances)},
        )

    def _encode(self, tokens: Tensor, num_tokens: Tensor, language: Tensor, log_probs: Tensor) -> Memory:
        if tokens.shape[1] > self.config.max_source_tokens:
            raise SprachbundError(
                f"a source has {tokens.shape[1]} tokens and mBART reads {self.config.max_source_tokens}; give shorter "
                "texts or speech"
            )
        whole = torch.cat([self._source_tokens[language][:, None], tokens], dim=1)
        states = self.encoder(self.embed(whole), num_tokens + 1)
        return Memory(
            states=states, num_frames=num_tokens + 1, source_language=language, language_log_probs=log_probs
        )


# Start from an mBART of transformers: its sizes, weights and tokens.
#
# Facts of mBART-50's tokens (arXiv 2008.00401): `<s>`, `<pad>`, `</s>`, `<unk>`, the pieces of its
# SentencePiece model from its fourth on, each one later than there, codes of 52 languages, `<mask>`.
# Shapes: W tokens kept, D width.

PIECES = "sentencepiece.bpe.model"
PAD, END, UNKNOWN = 1, 2, 3
FIRST_PIECE = 3
"""First piece of the SentencePiece model; before it are its own unknown, begin and end."""
_PIECES_LATER = 1


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
        return codes[primary(tag)]
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
        num_pieces: pieces of its SentencePiece model.

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
    return MbartShape(**checkpoints.shape_of(config, "the checkpoint").model_dump())


def fill(model: TokenMbart, hf_model: nn.Module, rows: Tensor) -> None:
    """Give a model, built on the meta device, the weights of a checkpoint; what is new in it is drawn.

    Args:
        model: model to be filled.
        hf_model: `MBartForConditionalGeneration`.
        rows: (W,) its tokens, of each that the model may write.
    """
    theirs = hf_model.state_dict()
    weights = {
        name: _taken(theirs[transformers_name(name, "mbart")], name, rows)
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
    """So many rows (., D) of a normal around the mean of `rows` (., D), in each of D dimensions with their spread."""
    return rows.mean(0) + rows.std(0) * torch.randn(count, rows.shape[1])


def _taken(weight: Tensor, name: str, rows: Tensor) -> Tensor:
    own = as_ours(name, weight, "mbart")
    if name in ("decoder.embedding.weight", "decoder.logits_bias"):
        return own[rows]
    return own if own is weight else own.clone()
