"""Voxtral, Granite Speech and Qwen3-ASR as directories in transformers' layout, read without it.

They hold JSON, safetensors in one file or in shards, a tokenizer, and Granite Speech an adapter. Weights keep the
precision that they are stored in: bfloat16, as most are published, or single precision.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.config import (
    GraniteSpeechConfig,
    QwenAsrConfig,
    VoxtralConfig,
)
from sprachbund.models.audio_llm.granite import GraniteSpeech, adapt
from sprachbund.models.audio_llm.model import AudioLLM
from sprachbund.models.audio_llm.qwen3_asr import QwenAsr
from sprachbund.models.audio_llm.tokens import TEKKEN, TOKENIZER, LLMTokens
from sprachbund.models.audio_llm.voxtral import Voxtral
from sprachbund.models.card import Card
from sprachbund.models.causal_lm import ChatTemplate, fill, read_shards
from sprachbund.models.hub import GENERATION, ConfigPart, check_config, family_of, find, read_files
from sprachbund.models.weights import COUNTER, Bits, cast_to_bits, dtype_name, write_transformers_directory
from sprachbund.util.files import read_object, validate

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
VOXTRAL, GRANITE, QWEN = "voxtral", ("granite_speech", "granite_speech_plus"), "qwen3_asr"
_ADVICE = "copy the model again"
_OTHER_FILES = (
    TOKENIZER,
    TEKKEN,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION,
    "chat_template.jinja",
    "chat_template.json",
    ADAPTER_CONFIG,
    "params.json",
)
"""Other files of such a directory; they are copied, so that transformers can read a saved one."""


def load(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> AudioLLM:
    """Load a speech LLM for inference, in the precision that it is stored in, on the CPU.

    Args:
        path_or_id: a directory in transformers' layout, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    kind = family_of(directory)
    path = directory / CONFIG
    values = check_config(path)
    model: AudioLLM
    if kind == VOXTRAL:
        voxtral = validate(VoxtralConfig, values, str(path), advice=_ADVICE)
        tokens = LLMTokens.read(directory, voxtral.text_config.vocab_size)
        check_extractor(directory, {"feature_size": voxtral.audio_config.num_mel_bins, "n_fft": 400})
        with torch.device("meta"):
            model = Voxtral(voxtral, values, tokens, ends_of(directory, values))
    elif kind in GRANITE:
        granite = validate(GraniteSpeechConfig, values, str(path), advice=_ADVICE)
        tokens = LLMTokens.read(directory, granite.text_config.vocab_size)
        check_extractor(directory, _granite_features(granite))
        with torch.device("meta"):
            model = GraniteSpeech(granite, values, tokens, ends_of(directory, values), _template(directory))
    elif kind == QWEN:
        qwen = validate(QwenAsrConfig, values, str(path), advice=_ADVICE)
        tokens = LLMTokens.read(directory, qwen.text_config.vocab_size)
        audio = qwen.audio_config
        wanted = {
            "feature_size": audio.num_mel_bins,
            "n_fft": 400,
            "n_window": audio.n_window,
            "min_length": 8000,
        }
        check_extractor(directory, wanted)
        with torch.device("meta"):
            model = QwenAsr(qwen, values, tokens, ends_of(directory, values), _template(directory))
    else:
        raise SprachbundError(
            f"{path} describes a model of type {kind!r}; give one of {', '.join((VOXTRAL, *GRANITE, QWEN))}"
        )
    model.check_room()
    # Where transformers saved a model with its adapters, they are in both files, and the layers have other names.
    weights = {
        own_name(name).replace(".base_layer.", "."): value
        for name, value in read_shards(directory).items()
        if _COPY.search(name) is None
    }
    if isinstance(model, GraniteSpeech):
        weights = _with_adapters(model, weights, directory)
    wanted_names = model.state_dict()
    if _OUTPUT not in wanted_names:
        _drop_copy(weights, directory)
    counters = {n: torch.zeros((), dtype=torch.long) for n in wanted_names if n.endswith(COUNTER)}
    fill(model, {**weights, **counters}, directory, sorted(directory.glob("*.safetensors")))
    model.files = read_files(directory, _OTHER_FILES)
    return model.eval()


def _drop_copy(weights: dict[str, Tensor], directory: Path) -> None:
    """Take the output matrix of a tied model out of its weights, where it is a copy of the embedding."""
    output, embedding = weights.pop(_OUTPUT, None), weights.get(_EMBEDDING)
    if output is not None and (embedding is None or not torch.equal(output, embedding)):
        raise SprachbundError(
            f"{directory} has an output matrix of its own, and {CONFIG} says that it is the embedding; set "
            "tie_word_embeddings to false there if that is how the model was published"
        )


def _template(directory: Path) -> ChatTemplate:
    template = ChatTemplate.read(directory)
    if template is None:
        raise SprachbundError(
            f"{directory} has no chat template, which makes its prompts; add chat_template.jinja from where the "
            "model came from"
        )
    return template


def ends_of(directory: Path, values: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text: of generation_config.json, or of config.json.

    Args:
        directory: directory of the model.
        values: values of its config.json.

    Raises:
        SprachbundError: an end token that the model does not have.
    """
    path = directory / GENERATION
    text = values.get("text_config")
    said: list[Any] = [
        read_object(path).get("eos_token_id") if path.is_file() else None,
        values.get("eos_token_id"),
        text.get("eos_token_id") if isinstance(text, dict) else None,
        2
        if values.get("model_type") in (VOXTRAL, "voxtral_realtime", *GRANITE)
        else None,  # the default of transformers' classes
    ]
    stated = next((one for one in said if one is not None), None)
    ends: list[Any] = stated if isinstance(stated, list) else [stated]
    size = text.get("vocab_size", 131_072) if isinstance(text, dict) else 0
    if not ends or any(
        isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < size for end in ends
    ):
        raise SprachbundError(
            f"{directory}: eos_token_id is {repr(stated)[:60]}, which is no token of {size}; {_ADVICE}"
        )
    return [int(end) for end in ends]


# Features.

_EXTRACTORS = (
    ("preprocessor_config.json", ""),
    ("processor_config.json", "feature_extractor"),
    ("processor_config.json", "audio_processor"),
)


def _granite_features(config: GraniteSpeechConfig) -> dict[str, Any]:
    bins = config.encoder_config.input_dim // 2
    mel = {"sample_rate": 16_000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": bins}
    return {
        "melspec_kwargs": mel,
        "projector_window_size": config.window_size,
        "projector_downsample_rate": config.downsample_rate,
    }


def check_extractor(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Check that a directory's features are those that are computed here.

    Args:
        directory: directory with a configuration of the extractor, or without one.
        wanted: its fields by name, beside the sampling rate and the hop.

    Raises:
        SprachbundError: another value; the message names the field.
    """
    for name, part in _EXTRACTORS:
        path = directory / name
        if not path.is_file():
            continue
        said = read_object(path)
        said = said.get(part, {}) if part else said
        if not isinstance(said, dict):
            raise SprachbundError(f"{path}: {part} is {repr(said)[:60]}, not an object; {_ADVICE}")
        for key, value in {"sampling_rate": 16_000, "hop_length": 160, **wanted}.items():
            seen = said.get(key, value)
            same = (
                {**value, **seen} == value
                if isinstance(value, dict) and isinstance(seen, dict)
                else seen == value
            )
            if not same:
                raise SprachbundError(
                    f"{path}: {key} is {repr(seen)[:80]}, and features are computed here with {value}"
                )


# Names of weights, theirs and ours.

_OUTPUT, _EMBEDDING = "llm.lm_head.weight", "llm.embed_tokens.weight"
_OWN = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.", ""),
        (r"^(language_model\.)?lm_head\.", "llm.lm_head."),
        (r"^language_model\.(model\.)?", "llm."),
        (r"^multi_modal_projector\.", "projector."),
        (r"^audio_tower\.(?=.*\bself_attn\.)", "audio_tower.self."),
        (r"^audio_tower\.self\.(.*)\.self_attn\.q_proj\.", r"encoder.\1.self_attention.query."),
        (r"^audio_tower\.self\.(.*)\.self_attn\.k_proj\.", r"encoder.\1.self_attention.key."),
        (r"^audio_tower\.self\.(.*)\.self_attn\.v_proj\.", r"encoder.\1.self_attention.value."),
        (r"^audio_tower\.self\.(.*)\.self_attn\.out_proj\.", r"encoder.\1.self_attention.out."),
        (r"^audio_tower\.(.*)\.self_attn_layer_norm\.", r"encoder.\1.self_norm."),
        (r"^audio_tower\.(.*)\.final_layer_norm\.", r"encoder.\1.feed_forward.norm."),
        (r"^audio_tower\.(.*)\.fc1\.", r"encoder.\1.feed_forward.expand."),
        (r"^audio_tower\.(.*)\.fc2\.", r"encoder.\1.feed_forward.contract."),
        (r"^audio_tower\.(layer_norm|ln_post)\.", "encoder.norm."),
        (r"^audio_tower\.embed_positions\.weight$", "encoder.positions"),
        (r"^audio_tower\.", "encoder."),
    )
)
"""transformers' names to ours, one rule after the other."""


def own_name(name: str) -> str:
    """Our name of a weight that transformers calls `name`, in the layout of any of its releases."""
    for pattern, ours in _OWN:
        name = pattern.sub(ours, name)
    return name


_THEIRS = {
    "self_norm": "self_attn_layer_norm",
    "self_attention.query": "self_attn.q_proj",
    "self_attention.key": "self_attn.k_proj",
    "self_attention.value": "self_attn.v_proj",
    "self_attention.out": "self_attn.out_proj",
    "feed_forward.norm": "final_layer_norm",
    "feed_forward.expand": "fc1",
    "feed_forward.contract": "fc2",
}


def their_name(name: str, kind: str) -> str:
    """The name under which transformers writes our weight `name` of a model of `kind`."""
    part, _, rest = name.partition(".")
    if part == "llm":
        if kind == QWEN:
            return rest if rest.startswith("lm_head") else f"model.language_model.{rest}"
        return f"language_model.{rest}" if rest.startswith("lm_head") else f"language_model.model.{rest}"
    prefix = "model." if kind == QWEN else ""
    if kind in GRANITE:
        return name
    if part == "projector":
        return f"{prefix}multi_modal_projector.{rest}"
    if rest == "positions":
        return f"{prefix}audio_tower.embed_positions.weight"
    if rest.startswith("norm."):
        return (
            f"{prefix}audio_tower.{'ln_post' if kind == QWEN else 'layer_norm'}.{rest.removeprefix('norm.')}"
        )
    if (layer := re.fullmatch(r"(layers\.\d+)\.(.+)\.(weight|bias)", rest)) is not None:
        rest = f"{layer[1]}.{_THEIRS[layer[2]]}.{layer[3]}"
    return f"{prefix}audio_tower.{rest}"


# Adapters of Granite Speech, in peft's layout.


class _AdapterConfig(ConfigPart):
    """adapter_config.json; what is not built has one value."""

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(strict=True, ge=1, le=65_536)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    use_rslora: bool = False
    use_dora: Literal[False] = False
    lora_bias: Literal[False] = False
    fan_in_fan_out: Literal[False] = False
    bias: Literal["none"] = "none"
    modules_to_save: None = None
    rank_pattern: Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)
    alpha_pattern: Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)


_COPY = re.compile(r"\.lora_[AB]\.default\.weight$")
_PEFT = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight$")


def _with_adapters(model: GraniteSpeech, weights: Mapping[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """Put the adapters of a directory onto a model on the meta device; its weights, theirs among them, by our names."""
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        assert isinstance(model.config, GraniteSpeechConfig)
        if model.config.has_lora_adapter:
            raise SprachbundError(
                f"{directory / CONFIG} has has_lora_adapter, and there is no {ADAPTER_CONFIG}; without them the "
                "model does not understand speech: copy it too"
            )
        return dict(weights)
    settings = validate(_AdapterConfig, read_object(path), str(path), advice=_ADVICE)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, value in read_shards(directory, ADAPTER).items():
        if (match := _PEFT.match(name)) is None:
            raise SprachbundError(f"{directory / ADAPTER}: {name} is no weight of an adapter; {_ADVICE}")
        layer = own_name(match[1])
        pairs.setdefault(layer, {})[match[2].lower()] = value
        model.adapter_names[f"{layer}.lora_{match[2].lower()}.weight"] = name
    for layer, pair in pairs.items():
        if set(pair) != {"a", "b"} or pair["a"].shape[:1] != (settings.r,):
            raise SprachbundError(
                f"{directory / ADAPTER}: {layer} has not both matrices of rank {settings.r}; {_ADVICE}"
            )
    with torch.device("meta"):
        ranks = dict.fromkeys(pairs, settings.r)
        adapt(model, ranks, settings.lora_alpha, rank_stabilised=settings.use_rslora)
    adapters = {
        f"{layer}.lora_{which}.weight": w for layer, pair in pairs.items() for which, w in pair.items()
    }
    own = {
        (
            f"{name.removesuffix('.weight')}.base.weight" if name.removesuffix(".weight") in pairs else name
        ): value
        for name, value in weights.items()
    }
    return {**own, **adapters}


# Writing.


def to_transformers(model: AudioLLM) -> dict[str, Tensor]:
    """The weights of a model under transformers' names, without those of adapters."""
    adapters = model.adapter_names if isinstance(model, GraniteSpeech) else {}
    return {
        their_name(name.replace(".base.", "."), model.name): value
        for name, value in model.state_dict().items()
        if name not in adapters
    }


def save(
    model: AudioLLM, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
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
    files: dict[str, Mapping[str, Tensor]] = {SAFETENSORS: _cast(to_transformers(model), bits)}
    if isinstance(model, GraniteSpeech) and model.adapter_names:
        own = model.state_dict()
        files[ADAPTER] = _cast({theirs: own[name] for name, theirs in model.adapter_names.items()}, bits)
    dtype = next(value.dtype for value in files[SAFETENSORS].values() if value.is_floating_point())
    values = {**model.values, "dtype": dtype_name(dtype)}
    write_transformers_directory(Path(directory), files, values, model.files, bits=bits, card=card)


def _cast(weights: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    counters = {name: value for name, value in weights.items() if name.endswith(COUNTER)}
    return {**cast_to_bits(weights, bits), **counters}
