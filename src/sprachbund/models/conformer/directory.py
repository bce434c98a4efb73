"""Conformer models as directories: config.json, model.safetensors, tokenizer.model, card.json.

One that is split by language also has its sharing_plan.json.
"""

import json
from pathlib import Path

import torch
from pydantic import ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer.model import Conformer
from sprachbund.models.conformer.shape import ConformerConfig
from sprachbund.models.packed_linears import (
    KEY,
    check_packed,
    make_packed_room,
    packed_linears,
    read_packed_linears,
)
from sprachbund.models.splitting import read_plan, split_feed_forwards, write_plan
from sprachbund.models.weights import Bits, read_weights, write_weights
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.util.files import write_text

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
TRANSCRIPT_TOKENIZER_FILE = "transcript_tokenizer.model"


def load(directory: Path) -> Conformer:
    """Load a model for inference, on the CPU in fp32 whatever the bits it is stored in; packed layers stay packed.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    config = read_config(directory)
    tokenizer = _read_tokenizer(directory / TOKENIZER_FILE, config.target_languages)
    transcript_tokenizer = _read_tokenizer(directory / TRANSCRIPT_TOKENIZER_FILE, ())
    with torch.device("meta"):
        model = Conformer(config, tokenizer, transcript_tokenizer)
    plan = read_plan(directory, directory / WEIGHTS_FILE)
    if plan is not None:
        split_feed_forwards(model, plan)
    weights = read_weights(directory / WEIGHTS_FILE)
    if (packed := read_packed_linears(directory)) is not None:
        make_packed_room(model, packed, weights)
        check_packed(weights, directory)
    wanted = model.state_dict()
    if missing := sorted(wanted.keys() - weights.keys()):
        raise SprachbundError(
            f"{directory} lacks {len(missing)} weights ({', '.join(missing[:3])} ...); copy it again"
        )
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            seen, need = tuple(weights[name].shape), tuple(value.shape)
            raise SprachbundError(
                f"{directory}: {name} has shape {seen}, config.json asks for {need}; they do not fit"
            )
        if weights[name].dtype != value.dtype:
            raise SprachbundError(
                f"{directory}: {name} is {weights[name].dtype}, not {value.dtype}; copy it again"
            )
    model.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    return model.eval()


def save(model: Conformer, directory: Path, *, bits: Bits = 32, card: Card | None = None) -> None:
    """Write a model directory; the weights come last, so a broken-off writing is not taken for a model."""
    packed = packed_linears(model)
    directory.mkdir(parents=True, exist_ok=True)
    config = {"family": Conformer.name, "config": model.config.model_dump(mode="json")}
    if packed is not None:
        config[KEY] = packed.model_dump(mode="json")
    write_text(directory / "config.json", json.dumps(config, indent=1) + "\n")
    model.tokenizer.save(directory / TOKENIZER_FILE)
    model.transcript_tokenizer.save(directory / TRANSCRIPT_TOKENIZER_FILE)
    if card is not None:
        card.model_copy(update={"bits": bits if packed is None else packed.bits}).write(directory)
    write_weights(directory / WEIGHTS_FILE, model.state_dict(), bits, write_plan(model, directory))


def _read_tokenizer(path: Path, languages: tuple[str, ...]) -> Tokenizer:
    if not path.exists():
        raise SprachbundError(f"{path.parent} has no {path.name}; copy it from where the model came from")
    return Tokenizer.load(path, languages)


def read_config(directory: Path) -> ConformerConfig:
    """Shape and languages of a model, without its weights. Raises SprachbundError for what is no configuration."""
    path = directory / "config.json"
    try:
        return ConformerConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (json.JSONDecodeError, KeyError) as error:
        raise SprachbundError(f"{path} is not a model's configuration ({error!r}); copy it again") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise SprachbundError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
