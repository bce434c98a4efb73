"""Voxtral Realtime as a directory in transformers' layout, read without it.

It holds JSON, safetensors in one file or in shards, and Mistral's vocabulary, which says how the published model was
taught to stream. Weights keep the precision that they are stored in.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from sprachbund.audio.features import VOXTRAL_LOUDEST
from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.io import check_extractor, ends_of
from sprachbund.models.audio_llm.tokens import TEKKEN, TOKENIZER, LLMTokens
from sprachbund.models.card import Card
from sprachbund.models.causal_lm import fill, read_shards
from sprachbund.models.hub import GENERATION, ConfigPart, check_config, find, read_files
from sprachbund.models.voxtral_realtime.config import VoxtralRealtimeConfig
from sprachbund.models.voxtral_realtime.model import VoxtralRealtime
from sprachbund.models.weights import Bits, cast_to_bits, dtype_name, write_transformers_directory
from sprachbund.util.files import read_object, validate

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
LEAD = 32
"""Frames of silence before the speech, where the vocabulary file does not say how many."""
_ADVICE = "copy the model again"
_OTHER_FILES = (
    TOKENIZER,
    TEKKEN,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION,
    "params.json",
)
"""Other files of such a directory; they are copied, so that transformers can read a saved one."""


class _Streaming(ConfigPart):
    """The part of tekken.json about sound; what is built in one way only has one value."""

    sampling_rate: Literal[16_000] = 16_000
    frame_rate: Annotated[float, Field(ge=12.5, le=12.5)] = 12.5
    transcription_format: Literal["streaming"] = "streaming"
    transcription_delay_ms: Annotated[float, Field(gt=0, le=10_000, multiple_of=80)] | None = None
    streaming_n_left_pad_tokens: Annotated[int, Field(strict=True, ge=0, le=1000)] = LEAD


def load(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> VoxtralRealtime:
    """Load a model for inference, in the precision that it is stored in, on the CPU.

    Args:
        path_or_id: a directory in transformers' layout, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    path = directory / CONFIG
    values = check_config(path)
    config = validate(VoxtralRealtimeConfig, values, str(path), advice=_ADVICE)
    tokens = LLMTokens.read(directory, config.text_config.vocab_size)
    bins = config.audio_config.num_mel_bins
    wanted = {"feature_size": bins, "n_fft": 400, "win_length": 400, "global_log_mel_max": VOXTRAL_LOUDEST}
    check_extractor(directory, wanted)
    said = _streaming(directory)
    delay = config.default_num_delay_tokens
    if said.transcription_delay_ms is not None:
        delay = round(said.transcription_delay_ms * said.frame_rate / 1000)
    with torch.device("meta"):
        model = VoxtralRealtime(
            config,
            values,
            tokens,
            ends_of(directory, values),
            lead=said.streaming_n_left_pad_tokens,
            delay=config.sprachbund.delay or delay,
        )
    weights = {own_name(name): value for name, value in read_shards(directory).items()}
    output = weights.pop(_OUTPUT, None)
    if output is not None and not torch.equal(output, weights.get(_EMBEDDING, output[:0])):
        raise SprachbundError(
            f"{directory} has an output matrix of its own, and {CONFIG} says that it is the embedding; {_ADVICE}"
        )
    fill(model, weights, directory, sorted(directory.glob("*.safetensors")))
    model.files = read_files(directory, _OTHER_FILES)
    return model.eval()


def save(
    model: VoxtralRealtime, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in transformers' layout, which transformers loads too.

    config.json comes last, so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokens.
        directory: directory to be written.
        bits: bits of a weight: 16, or 32, which keeps the precision that the weights have.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    weights = cast_to_bits({their_name(name): value for name, value in model.state_dict().items()}, bits)
    values = {**model.values, "dtype": dtype_name(weights[their_name(_EMBEDDING)].dtype)}
    write_transformers_directory(
        Path(directory), {SAFETENSORS: weights}, values, model.files, bits=bits, card=card
    )


def _streaming(directory: Path) -> _Streaming:
    path = directory / TEKKEN
    said: Any = read_object(path).get("audio") if path.is_file() else None
    return _Streaming() if said is None else validate(_Streaming, said, f"{path}: audio", advice=_ADVICE)


# Names of weights, theirs and ours.

_OUTPUT, _EMBEDDING = "llm.lm_head.weight", "llm.embed_tokens.weight"
_PARTS = (
    ("audio_tower.embedder.", "encoder."),
    ("audio_tower.", "encoder."),
    ("multi_modal_projector.", "projector."),
    ("language_model.lm_head.", "llm.lm_head."),
    ("language_model.model.", "llm."),
    ("language_model.", "llm."),
    ("lm_head.", "llm.lm_head."),
)
"""Beginnings of names, theirs and ours; the first that fits."""
_LAYERS = (
    (".self_attn_layer_norm.", ".input_layernorm."),
    (".final_layer_norm.", ".post_attention_layernorm."),
    (".ada_rms_norm.", ".mlp."),
)


def own_name(name: str) -> str:
    """Our name of a weight that transformers calls `name`."""
    name = name.removeprefix("model.")
    for theirs, ours in _PARTS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _LAYERS:
        name = name.replace(theirs, ours)
    return name


def their_name(name: str) -> str:
    """The name under which transformers writes our weight `name`."""
    part, _, rest = name.partition(".")
    if part == "projector":
        return f"multi_modal_projector.{rest}"
    if part == "llm":
        return f"language_model.model.{re.sub(r'[.]mlp[.]linear', '.ada_rms_norm.linear', rest)}"
    if rest.startswith("conv"):
        return f"audio_tower.embedder.{rest}"
    for theirs, ours in _LAYERS[:2]:
        rest = f".{rest}".replace(ours, theirs).removeprefix(".")
    return f"audio_tower.{rest}"
