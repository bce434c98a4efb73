"""Seamless models as directories in the Hugging Face layout, with speech-to-text alone in what is written.

That layout has no place for feed-forwards that are split by language: a split model is written with its weights
under our own names, a sharing plan, and a model type that transformers does not take for one of its own.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.seamless.foreign import VERSIONS, foreign_name, library, to_foreign
from sprachbund.models.seamless.model import Seamless
from sprachbund.models.seamless.reading import (
    CONFIG,
    SAFETENSORS,
    SPLIT_TYPE,
    check_files,
    empty_foreign,
    read_extractor,
    read_foreign,
    read_tokens,
)
from sprachbund.models.seamless.tokens import SeamlessTokens
from sprachbund.models.splitting import read_plan, split_feed_forwards, write_plan
from sprachbund.models.teaching import stored
from sprachbund.models.weights import COUNTER, Bits, check_weights, read_weights
from sprachbund.models.whisper.hub import find
from sprachbund.util.files import atomic_files, is_empty, write_json
from sprachbund.util.tensors import save_tensors

_EMBEDDING = "decoder.embedding.weight"


def load(
    path_or_id: str | os.PathLike[str], *, offline: bool = False, dtype: torch.dtype = torch.float32
) -> Seamless:
    """Load the speech-to-text part of a SeamlessM4T model of either version, for inference, on the CPU.

    Args:
        path_or_id: a directory, or the name of a model on the Hugging Face hub.
        offline: never use the network.
        dtype: of the weights.

    Raises:
        SprachbundError: transformers is not installed, files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    library()
    check_files(directory)
    plan = read_plan(directory, directory / SAFETENSORS)
    foreign = read_foreign(directory, dtype) if plan is None else empty_foreign(directory)
    tokens, extractor = read_tokens(directory, foreign), read_extractor(directory)
    if plan is None:
        return from_foreign(foreign, tokens=tokens, extractor=extractor).eval()
    with torch.device("meta"):
        model = Seamless(foreign, tokens=tokens, extractor=extractor)
    split_feed_forwards(model, plan)
    stored = read_weights(directory / SAFETENSORS)
    weights = {n: weight.long() if n.endswith(COUNTER) else weight.to(dtype) for n, weight in stored.items()}
    return _filled(model, weights, str(directory)).eval()


def from_foreign(foreign: Any, *, tokens: SeamlessTokens | None = None, extractor: Any = None) -> Seamless:
    """Our model with the weights of a speech-to-text model of transformers; they are shared, not copied."""
    weights: dict[str, Tensor] = foreign.state_dict()
    with torch.device("meta"):
        model = Seamless(foreign, tokens=tokens, extractor=extractor)
    return _filled(model, {name: weights[foreign_name(name)] for name in model.state_dict()}, "the model")


def save(
    model: Seamless, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in the Hugging Face layout; transformers loads it as speech-to-text.

    A model that is split by language is written in our own layout, which only `load` reads. The weights come last,
    so a broken-off writing is not taken for a model.

    Args:
        model: with its tokens.
        directory: to be written.
        bits: of a weight, 16 or 32; 32 keeps the precision that the model has.
        card: to lie beside the weights.

    Raises:
        SprachbundError: the place is taken by something else, or cannot be written.
    """
    final = Path(directory)
    if final.exists() and not (final.is_dir() and ((final / CONFIG).is_file() or is_empty(final))):
        raise SprachbundError(f"{final} exists and is not a model directory; choose another name")
    try:
        final.mkdir(parents=True, exist_ok=True)
        for old in final.glob("*.safetensors*"):
            old.unlink()
        with atomic_files(final, last="config.json") as draft:
            for part in (model.generation, model.tokens.tokenizer, model.extractor):
                part.save_pretrained(draft)
        own = stored(model.state_dict(), bits)
        if card is not None:
            card.model_copy(update={"bits": bits}).write(final)
        _write_config(model, final / CONFIG, own[_EMBEDDING].dtype)
        _write_weights(model, final, own)
    except OSError as error:
        raise SprachbundError(f"{final} could not be written ({error}); mend that and save again") from error


def _write_config(model: Seamless, path: Path, dtype: torch.dtype) -> None:
    version = model.config.model_type
    values = {**model.config.to_dict(), "architectures": [VERSIONS[version][1]]}
    values["dtype"] = str(dtype).removeprefix("torch.")
    if model.sharing_plan is not None:
        del values["architectures"]
        values |= {"family": version, "model_type": SPLIT_TYPE}
    write_json(path, values, indent=2)


def _write_weights(model: Seamless, directory: Path, own: dict[str, Tensor]) -> None:
    metadata = {"format": "pt", **write_plan(model, directory)}
    weights = to_foreign(own) if model.sharing_plan is None else own
    save_tensors(directory / SAFETENSORS, weights, metadata)


def _filled(model: Seamless, weights: dict[str, Tensor], source: str) -> Seamless:
    """The model with these weights, under our names, in place of those on the meta device."""
    dtype = next((weight.dtype for weight in weights.values() if weight.is_floating_point()), torch.float32)
    wanted = {n: v.to(dtype) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    check_weights(weights, wanted, source)
    model.load_state_dict(weights, assign=True)
    table = model.decoder.positions.to(model.decoder.embedding.weight.dtype)
    model.decoder.register_buffer("positions", table, persistent=False)
    return model
