"""Random Seamless checkpoints of both versions, made by transformers, with a SentencePiece vocabulary in its order."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from sprachbund.models.seamless import Seamless, from_transformers
from sprachbund.models.seamless.tokens import SeamlessTokens

CODES = ("eng", "fra", "arb", "cmn", "cmn_Hant", "est", "ajp", "apc")
SENTENCES = (
    "the dog runs over the street",
    "der Hund läuft über die Straße",
    "le chien court dans la rue",
    "el perro corre por la calle",
    "koer jookseb üle tänava",
    "a glossary of names, numbers and dates: seven eight nine",
)
VERSIONS = ("seamless_m4t", "seamless_m4t_v2")
SIZES = {
    "hidden_size": 32,
    "feature_projection_input_dim": 160,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 48,
    "conv_depthwise_kernel_size": 5,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 40,
    "encoder_layers": 1,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_ffn_dim": 16,
    "t2u_decoder_ffn_dim": 16,
    "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "t2u_vocab_size": 20,
    "unit_hifi_gan_vocab_size": 20,
    "max_position_embeddings": 64,
    "max_new_tokens": 24,
}
"""A model that encodes in milliseconds; every size differs where sizes may differ."""


@cache
def pieces(kind: str = "bpe") -> bytes:
    """A SentencePiece model with Seamless's special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        vocab_size=120,
        model_type=kind,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(directory: Path, codes: tuple[str, ...] = CODES) -> Any:
    """The files as published: pieces, and the language tokens in the configuration; and the tokenizer read back."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sentencepiece.bpe.model").write_bytes(pieces())
    config = {
        "tokenizer_class": "SeamlessM4TTokenizer",
        "additional_special_tokens": [f"__{code}__" for code in codes],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return transformers.SeamlessM4TTokenizer.from_pretrained(directory, local_files_only=True)


def make_config(version: str, vocabulary_size: int, **changes: Any) -> Any:
    small = (
        {"speech_encoder_chunk_size": 16, "speech_encoder_left_chunk_num": 1}
        if version.endswith("v2")
        else {}
    )
    near = {"left_max_position_embeddings": 6, "right_max_position_embeddings": 2} if small else {}
    kinds = {
        "seamless_m4t": transformers.SeamlessM4TConfig,
        "seamless_m4t_v2": transformers.SeamlessM4Tv2Config,
    }
    return kinds[version](vocab_size=vocabulary_size, **{**SIZES, **small, **near, **changes})


def make_transformers_model(config: Any, *, kind: str = "ForSpeechToText", seed: int = 0) -> Any:
    """The transformers model, every weight, bias, norm and running statistic random, so that none is lost unseen."""
    prefix = {"seamless_m4t": "SeamlessM4T", "seamless_m4t_v2": "SeamlessM4Tv2"}[config.model_type]
    model = getattr(transformers, prefix + kind)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or name.endswith((".pe", "embed_positions.weights")):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif name.endswith("norm.weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(noise * (0.1 if value.ndim < 2 else 1.6 * value[0].numel() ** -0.5))
        signs = torch.randn(config.hidden_size, generator=generator).sign()
        if hasattr(
            model, "text_decoder"
        ):  # its output matrix is tied: without this every token repeats itself
            model.text_decoder.layer_norm.weight.mul_(signs)
            model.shared.weight.mul_(3)
            model.shared.weight[3].mul_(1.7)  # so that some rows end
    return model


def give_languages(hf_model: Any, tokenizer: Any, codes: tuple[str, ...] = CODES) -> None:
    tokens = {code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in codes}
    hf_model.generation_config.text_decoder_lang_to_code_id = tokens
    hf_model.generation_config._from_model_config = False  # else `generate` writes it anew


def make_checkpoint(directory: Path, version: str, *, kind: str = "ForSpeechToText", **changes: Any) -> Any:
    """A directory as published; returns the transformers model in it."""
    tokenizer = write_tokenizer(directory)
    hf_model = make_transformers_model(make_config(version, len(tokenizer), **changes), kind=kind)
    give_languages(hf_model, tokenizer)
    hf_model.save_pretrained(directory)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(directory)
    return hf_model


def make_pair(directory: Path, version: str, **changes: Any) -> tuple[Any, Seamless]:
    """A transformers model and ours with the same weights."""
    tokenizer = write_tokenizer(directory)
    hf_model = make_transformers_model(make_config(version, len(tokenizer), **changes))
    give_languages(hf_model, tokenizer)
    codes = hf_model.generation_config.text_decoder_lang_to_code_id
    tokens = SeamlessTokens(tokenizer, codes, len(tokenizer))
    return hf_model, from_transformers(hf_model, tokens=tokens).eval()
