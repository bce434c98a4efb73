"""Text-to-text translators as directories in the Hugging Face layout, as transformers writes and reads them."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.hub import (
    check_config,
    family_of,
    find,
    one_line,
    optional_setting,
    quiet_transformers,
    read_generation,
    read_model,
)
from sprachbund.models.translation.checkpoints import (
    KINDS,
    as_ours,
    classes,
    library,
    shape_of,
    text_to_text,
    to_transformers,
    transformers_name,
)
from sprachbund.models.translation.model import TextTranslator
from sprachbund.models.translation.tokens import TranslationTokens, read_tokens
from sprachbund.models.weights import Bits, cast_to_bits, check_weights, directory_of_a_model, dtype_name
from sprachbund.nn.limits import FRAMES, POSITIONS, VOCABULARY, Limit
from sprachbund.util.files import atomic_files, write_json
from sprachbund.util.tensors import save_tensors

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "source.spm", "spiece.model")
_COMPUTED = (r"\.embed_positions\.weights$",)
"""Tables that early checkpoints hold and that are computed."""
_SIZES = {
    "max_position_embeddings": POSITIONS,
    "pad_token_id": FRAMES,
    "decoder_start_token_id": Limit(0, VOCABULARY.most),
    "vocab_size": VOCABULARY,
}
"""Limits of numbers in config.json that this package computes with, beside those of `sprachbund.models.hub`."""


def load(
    path_or_id: str | os.PathLike[str], *, offline: bool = False, dtype: torch.dtype = torch.float32
) -> TextTranslator:
    """Load a text-to-text translator for inference, on the CPU.

    Args:
        path_or_id: a directory, or the name of a model on the Hugging Face hub.
        offline: never use the network.
        dtype: dtype of the weights.

    Raises:
        SprachbundError: transformers is not installed, files are missing or broken, it is another model, or a T5 in
            float16.
    """
    directory = find(path_or_id, offline=offline)
    library()
    _check_files(directory)
    config = _config(directory)
    if config.model_type == "t5" and dtype == torch.float16:
        # Its feed-forwards overflow there; transformers keeps a part of them in 32 bits for that.
        raise SprachbundError(f"{directory} is a T5, whose numbers are too large for float16; take bfloat16")
    tokens = read_tokens(directory, config.model_type, config.vocab_size)
    hf_model = read_model(
        classes(config.model_type)[1],
        directory,
        config,
        build=text_to_text,
        surplus=_COMPUTED,
        dtype=dtype,
        attn_implementation="sdpa",
    )
    hf_model.generation_config = read_generation(directory) or hf_model.generation_config
    return from_transformers(hf_model, tokens=tokens).eval()


def from_transformers(hf_model: Any, *, tokens: TranslationTokens | None = None) -> TextTranslator:
    """Our model with the weights of a text-to-text model of transformers; they are shared, not copied.

    Args:
        hf_model: model of transformers, one of `KINDS`.
        tokens: its vocabulary; without it the model has shapes and weights, but no languages.
    """
    theirs: dict[str, Tensor] = hf_model.state_dict()
    with torch.device("meta"):
        model = TextTranslator(hf_model.config, hf_model.generation_config, tokens)
    kind = hf_model.config.model_type
    weights = {
        name: as_ours(name, theirs[transformers_name(name, kind)], kind) for name in model.state_dict()
    }
    dtype = weights["embedding.weight"].dtype
    wanted = {name: value.to(dtype) for name, value in model.state_dict().items()}
    check_weights(weights, wanted, "the model")
    model.load_state_dict(weights, assign=True)
    for part in (model.encoder, model.decoder):
        if not isinstance(part.positions, nn.Parameter):  # a table that is never stored
            part.register_buffer("positions", part.positions.to(dtype), persistent=False)
    return model


def save(
    model: TextTranslator, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in the Hugging Face layout; transformers loads it too.

    The weights come last, so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokens.
        directory: directory to be written.
        bits: bits of a weight, 16 or 32; 32 keeps the precision that the model has.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    final = Path(directory)
    weights = cast_to_bits(model.state_dict(), bits)
    with directory_of_a_model(final):
        with atomic_files(final, last=CONFIG) as draft:
            for part in (model.generation, model.tokens.tokenizer):
                part.save_pretrained(draft)
        if card is not None:
            card.model_copy(update={"bits": bits}).write(final)
        values = {**model.config.to_dict(), "architectures": [KINDS[model.name][1]]}
        if model.name == "t5":  # transformers ties it while it is loaded, unless the file has another matrix
            values["tie_word_embeddings"] = False
        values["dtype"] = dtype_name(weights["embedding.weight"].dtype)
        save_tensors(final / SAFETENSORS, to_transformers(weights, model.name), {"format": "pt"})
        write_json(final / CONFIG, values, indent=2)


def _check_files(directory: Path) -> None:
    """Raise SprachbundError when a file is missing, or the directory holds another kind of model."""
    kind = family_of(directory)
    if kind not in KINDS:
        raise SprachbundError(
            f"{directory / CONFIG} describes a model of type {kind!r}, not a translator of text; give one of "
            f"{', '.join(KINDS)}"
        )
    if not any(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        raise SprachbundError(f"{directory} has no weights, such as {SAFETENSORS}; add them")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise SprachbundError(f"{directory} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}; add one")


def _config(directory: Path) -> Any:
    path = directory / CONFIG
    values = check_config(path, _SIZES)
    with one_line(path), quiet_transformers():
        config = classes(values["model_type"])[0].from_dict(values)
        shape_of(config, str(path))
    start = optional_setting(config, "decoder_start_token_id")
    if start is None or not 0 <= start < config.vocab_size:
        raise SprachbundError(
            f"{path}: decoder_start_token_id is {start} of {config.vocab_size} tokens; copy it again"
        )
    return config
