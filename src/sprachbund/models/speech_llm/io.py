"""Speech LLMs as directories: config.json, model.safetensors, the tokenizer's files, card.json.

Encoder and language model are named there (a path, or a model on the hub) or lie inside: `llm/` and `encoder/` in the
Hugging Face layout, an encoder of this project among the other weights. model.safetensors holds what was trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer import io as conformer
from sprachbund.models.hub import family_of, find
from sprachbund.models.seamless import io as seamless
from sprachbund.models.speech_llm.checkpoints import (
    ADAPTED,
    TransformersSpeech,
    is_adapter,
    plain_weights,
    read_llm,
    read_speech,
    read_tokenizer,
    write_part,
)
from sprachbund.models.speech_llm.config import Options, SpeechLLMConfig
from sprachbund.models.speech_llm.encoders import SeamlessSpeech, SpeechEncoder, build, not_taken, of_family
from sprachbund.models.speech_llm.model import NAME, SpeechLLM
from sprachbund.models.speech_llm.projector import Projector
from sprachbund.models.weights import Bits, check_weights, read_metadata, read_weights, write_weights
from sprachbund.models.whisper import io as whisper
from sprachbund.util.files import atomic_files, parse_json, read_model, read_object, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LLM, ENCODER = "llm", "encoder"
_ORDER = "prompts.order"
"""Key in the head of model.safetensors: config.json may be edited, but not so that it contradicts the training."""


class EncoderEntry(Options):
    """The encoder of a model: `source` names it; without, it is built from `settings`, or read from `encoder/`."""

    kind: str
    settings: dict[str, Any]
    source: str | None = None


class Entry(Options):
    """The content of config.json; `llm` names the language model, None where it lies inside."""

    family: str = NAME
    config: SpeechLLMConfig
    encoder: EncoderEntry
    llm: str | None = None


def assemble(
    encoder: str | Path,
    llm: str | Path,
    config: SpeechLLMConfig,
    *,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
) -> SpeechLLM:
    """A new model around pretrained parts, projector and adapters untrained.

    Args:
        encoder: path or hub name of a Whisper, conformer or SeamlessM4T model, or of WavLM, wav2vec 2.0, HuBERT or
            w2v-BERT.
        llm: path or hub name of a causal language model.
        config: everything else.
        offline: never use the network.
        dtype: dtype of the language model and of an encoder of transformers.

    Raises:
        SprachbundError: a part that cannot be had, is of a kind that is not taken, or does not fit; see `SpeechLLM`.
    """
    llm_directory = find(llm, offline=offline)
    speech = read_encoder(find(encoder, offline=offline), dtype)
    model = SpeechLLM(speech, read_llm(llm_directory, dtype), config, tokenizer=read_tokenizer(llm_directory))
    model.sources = {ENCODER: _name(encoder), LLM: _name(llm)}
    return model


def save(
    model: SpeechLLM,
    directory: str | Path,
    *,
    bits: Bits = 32,
    card: Card | None = None,
    inside: bool = True,
) -> None:
    """Write a model directory; the weights come last, so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokenizer.
        directory: directory to be written.
        bits: bits of a weight of model.safetensors; parts of transformers inside keep the precision that they have.
        card: card to lie beside the weights.
        inside: write encoder and language model too; else they are named, as `assemble` or `load` got them.

    Raises:
        SprachbundError: parts are to be named that came from nowhere, or an encoder is to lie inside that has no form
            for it, or the directory cannot be written.
    """
    if not inside and model.sources is None:
        raise SprachbundError(
            "encoder and language model came from no path or name, so they cannot be named; save them inside"
        )
    if inside and isinstance(model.encoder, SeamlessSpeech):
        raise SprachbundError(
            "SeamlessM4T's encoder cannot be saved inside a speech LLM; save with inside=False"
        )
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / WEIGHTS).unlink(missing_ok=True)
        with atomic_files(directory, last=CONFIG) as draft:
            model.prompts.tokenizer.save_pretrained(draft)
        if card is not None:
            card.model_copy(update={"bits": bits}).write(directory)
        write_json(directory / CONFIG, _entry(model, inside))
        if inside:
            _save_parts(model, directory)
        order = {_ORDER: json.dumps(model.config.prompts.order)}
        write_weights(directory / WEIGHTS, _own_weights(model, inside), bits, order)
    except OSError as error:
        raise SprachbundError(
            f"{directory} could not be written ({error}); mend that and save again"
        ) from error


def load(directory: str | Path, *, offline: bool = True, dtype: torch.dtype = torch.float32) -> SpeechLLM:
    """Load a model for inference, on the CPU.

    Args:
        directory: directory of a model.
        offline: do not download parts that config.json names and that are not on disk.
        dtype: dtype of the language model and of an encoder of transformers.

    Raises:
        SprachbundError: naming what is missing, broken, or does not fit.
    """
    directory = Path(directory)
    entry = read_model(directory / CONFIG, Entry, advice="mend it, or copy the model again")
    _check_order(entry.config, directory)
    named = entry.encoder.source
    llm_directory = _part(directory, LLM) if entry.llm is None else find(entry.llm, offline=offline)
    weights = read_weights(directory / WEIGHTS)
    if named is not None:
        encoder = read_encoder(find(named, offline=offline), dtype)
    elif entry.encoder.kind == TransformersSpeech.kind:
        encoder = read_speech(_part(directory, ENCODER), dtype)
    else:
        encoder = _built(entry.encoder, weights, directory)
    llm = read_llm(llm_directory, dtype)
    _check_projector(entry.config, encoder, llm, weights, directory)
    model = SpeechLLM(encoder, llm, entry.config, tokenizer=read_tokenizer(directory))
    if named is not None and entry.llm is not None:
        model.sources = {ENCODER: named, LLM: entry.llm}
    _fill(model, weights, inside=named is None, source=directory)
    return model.eval()


def read_encoder(directory: Path, dtype: torch.dtype = torch.float32) -> SpeechEncoder:
    """The speech encoder in a directory, of this project or of transformers. Raises SprachbundError for another."""
    path = directory / CONFIG
    kind = read_object(path).get("model_type") if path.is_file() else None
    if kind in ADAPTED:
        return read_speech(directory, dtype)
    match family_of(directory):
        case "conformer":
            return of_family(conformer.load(directory))
        case "whisper":
            return of_family(whisper.load(directory, offline=True))
        case "seamless_m4t" | "seamless_m4t_v2":
            return of_family(seamless.load(directory, offline=True))
        case other:
            raise not_taken(other)


def _entry(model: SpeechLLM, inside: bool) -> Entry:
    sources = {} if inside else model.sources or {}
    encoder = EncoderEntry(
        kind=model.encoder.kind, settings=model.encoder.settings(), source=sources.get(ENCODER)
    )
    return Entry(config=model.config, encoder=encoder, llm=sources.get(LLM))


def _own_weights(model: SpeechLLM, inside: bool) -> dict[str, Tensor]:
    """Weights in model.safetensors, under the names that the parts have without adapters around them."""
    state = model.state_dict()
    own = {name: w for name, w in state.items() if name.startswith("projector.") or is_adapter(name)}
    if inside and model.encoder.kind != TransformersSpeech.kind:
        own |= {f"{ENCODER}.{name}": w for name, w in plain_weights(model.encoder).items()}
    return own


def _save_parts(model: SpeechLLM, directory: Path) -> None:
    speech = model.encoder
    write_part(model.llm.model, directory / LLM)
    if isinstance(speech, TransformersSpeech):
        write_part(speech.encoder, directory / ENCODER)
        with atomic_files(directory / ENCODER, last=CONFIG) as draft:
            speech.extractor.save_pretrained(draft)


def _fill(model: SpeechLLM, weights: dict[str, Tensor], *, inside: bool, source: Path) -> None:
    """Put the stored weights into a model. Raises SprachbundError when some are missing, too many or do not fit."""
    wanted = _own_weights(model, inside)
    # Adapters have the precision of what they are on, and are stored in single precision.
    check_weights(weights, {n: v.float() for n, v in wanted.items()}, source / WEIGHTS)
    with torch.no_grad():
        for name, value in wanted.items():  # views of the model's own weights
            value.copy_(weights[name])


def _check_order(config: SpeechLLMConfig, directory: Path) -> None:
    """Raise SprachbundError when config.json has instruction and speech in another order than in training."""
    trained = read_metadata(directory / WEIGHTS).get(_ORDER)
    if trained is None:  # written before the order was
        return
    try:
        order = parse_json(trained, f"{directory / WEIGHTS}: {_ORDER}")
        if not isinstance(order, list) or not all(isinstance(part, str) for part in order):
            raise SprachbundError(
                f"{_ORDER} in {WEIGHTS} is {trained[:60]}, not an order of prompts; copy it again"
            )
        config.prompts.check_order(order)
    except SprachbundError as error:
        raise SprachbundError(f"{directory / CONFIG}: {error}") from error


def _part(directory: Path, name: str) -> Path:
    if not (directory / name / CONFIG).is_file():
        raise SprachbundError(
            f"{directory} has no {name}/{CONFIG}, but its {CONFIG} names no other; copy it again"
        )
    return directory / name


def _name(path_or_id: str | Path) -> str:
    return str(Path(path_or_id).resolve()) if Path(path_or_id).is_dir() else str(path_or_id)


def _built(entry: EncoderEntry, weights: Mapping[str, Tensor], directory: Path) -> SpeechEncoder:
    """An encoder of this project, made when its stored weights are seen to be those of its settings."""
    try:
        with torch.device("meta"):
            wanted = build(entry.kind, entry.settings).state_dict()
        _check_part(
            weights, {f"{ENCODER}.{name}": value for name, value in wanted.items()}, ENCODER, directory
        )
        return build(entry.kind, entry.settings)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise SprachbundError(f"{directory / CONFIG}: encoder.settings: {reason}; copy it again") from error


def _check_projector(
    config: SpeechLLMConfig, encoder: Any, llm: Any, weights: Mapping[str, Tensor], directory: Path
) -> None:
    """See that the stored projector is that of the configuration, before one is made."""
    layers = config.projector.encoder_layers
    width = llm.config.get_text_config().hidden_size
    with torch.device("meta"):
        wanted = Projector((1 + len(layers)) * encoder.width, width, config.projector).state_dict()
    _check_part(
        weights, {f"projector.{name}": value for name, value in wanted.items()}, "projector", directory
    )
    ranks = {value.shape[0] for name, value in weights.items() if ".lora_A." in name and value.ndim}
    if ranks - {config.lora.rank}:
        raise SprachbundError(
            f"{directory / CONFIG}: lora.rank is {config.lora.rank}, the stored adapters have {max(ranks)}; "
            "copy it again"
        )


def _check_part(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], part: str, directory: Path
) -> None:
    own = {n: v for n, v in weights.items() if n.startswith(part + ".") and not is_adapter(n)}
    check_weights(own, wanted, directory / WEIGHTS)
