"""Causal language models in transformers' layout, read without it: config.json, weights in shards, chat templates.

Published speech LLMs (`sprachbund.models.audio_llm`) read the language model inside them with this file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.hub import ConfigPart, check_memory
from sprachbund.models.weights import COUNTER, check_finite, check_names
from sprachbund.nn.causal_lm import CausalShape, Rotary
from sprachbund.nn.limits import Flag, Heads, InnerWidth, SomeLayers, Vocabulary, Width
from sprachbund.util.files import read_object
from sprachbund.util.tensors import load_tensors

CausalKind = Literal["llama", "mistral", "qwen2", "qwen3", "granite"]
"""`model_type` of the language models that are built here."""
_COMMON = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _COMMON,
    "mistral": {
        **_COMMON,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {**_COMMON, "max_position_embeddings": 32_768},
    "qwen3": {**_COMMON, "max_position_embeddings": 32_768, "head_dim": 128},
    "granite": _COMMON,
}
"""Defaults of fields that config.json leaves out; they differ from kind to kind."""
_NO_SLIDING = ("qwen2", "qwen3")
"""Kinds whose sliding window counts only where `use_sliding_window` says so."""
Scale = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Context = Annotated[int, Field(strict=True, ge=1, le=2**27)]


class RotaryConfig(ConfigPart):
    """Rotary positions in transformers' names."""

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: Annotated[float, Field(ge=1, le=1e12, allow_inf_nan=False)] = 10_000.0
    factor: Scale = 1.0
    low_freq_factor: Scale = 1.0
    high_freq_factor: Scale = 4.0
    original_max_position_embeddings: Context = 8192
    partial_rotary_factor: Literal[1] | Annotated[float, Field(ge=1, le=1)] = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} is not above low_freq_factor {self.low_freq_factor}"
            )
        return self

    @property
    def rotary(self) -> Rotary:
        """The same in our names."""
        return Rotary(
            base=self.rope_theta,
            kind=self.rope_type,
            factor=self.factor,
            low_frequency=self.low_freq_factor,
            high_frequency=self.high_freq_factor,
            original_context=self.original_max_position_embeddings,
        )


class CausalConfig(ConfigPart):
    """config.json of a causal language model, or the part of one that describes it.

    Fields are transformers'; `bos_token_id` and `eos_token_id` are here for callers, nothing is computed with them.
    """

    model_type: CausalKind
    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: InnerWidth
    num_hidden_layers: SomeLayers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: Context
    rms_norm_eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    tie_word_embeddings: Flag = False
    rope_parameters: RotaryConfig = RotaryConfig()
    attention_bias: Flag = False
    mlp_bias: Flag = False
    sliding_window: Context | None = None
    embedding_multiplier: Scale = 1.0
    logits_scaling: Scale = 1.0
    residual_multiplier: Scale = 1.0
    attention_multiplier: Scale = 1.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Defaults of the kind, and the names that earlier releases of transformers wrote."""
        if not isinstance(given, dict):
            return given
        kind = given.get("model_type")
        known = _DEFAULTS.get(kind, _COMMON) if isinstance(kind, str) else _COMMON
        values = {**known, **{key: value for key, value in given.items() if value is not None}}
        rotary = values.pop("rope_scaling", None) or {}
        rotary = values.get("rope_parameters", rotary)
        if isinstance(rotary, dict):
            rotary = {**rotary, "rope_type": rotary.get("rope_type", rotary.get("type", "default"))}
            if "rope_theta" in values:
                rotary.setdefault("rope_theta", values["rope_theta"])
            if "partial_rotary_factor" in values:
                rotary.setdefault("partial_rotary_factor", values["partial_rotary_factor"])
        values["rope_parameters"] = rotary
        heads, width = values.get("num_attention_heads"), values.get("hidden_size")
        values.setdefault("num_key_value_heads", heads)
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            values.setdefault("head_dim", width // heads)
        unused = kind in _NO_SLIDING and not values.get("use_sliding_window")
        if unused or given.get("sliding_window", 0) is None:  # null is no window, and not the kind's default
            values["sliding_window"] = None
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_key_value_heads} heads of keys do not divide {self.num_attention_heads} heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        return self

    @property
    def shape(self) -> CausalShape:
        """The same in our names; with a sliding window, rows are as long as fits into that."""
        granite = self.model_type == "granite"
        biases = self.attention_bias and self.model_type != "mistral"
        context = min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)
        return CausalShape(
            vocabulary_size=self.vocab_size,
            width=self.hidden_size,
            inner_width=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_key_heads=self.num_key_value_heads,
            head_width=self.head_dim,
            context=context,
            norm_epsilon=self.rms_norm_eps,
            rotary=self.rope_parameters.rotary,
            tied=self.tie_word_embeddings,
            head_norms=self.model_type == "qwen3",
            qkv_bias=biases or self.model_type == "qwen2",
            out_bias=biases and self.model_type != "qwen2",
            inner_bias=self.mlp_bias and self.model_type in ("llama", "granite"),
            embedding_scale=self.embedding_multiplier if granite else 1.0,
            residual_scale=self.residual_multiplier if granite else 1.0,
            attention_scale=self.attention_multiplier if granite else None,
            logits_scale=self.logits_scaling if granite else 1.0,
        )


# Weights.

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_KEPT = (torch.float32, torch.bfloat16)
_SURPLUS = r"rotary_emb\.inv_freq$"
"""Tables that early checkpoints hold and that are computed."""


def read_shards(directory: Path, pattern: str = "model*.safetensors") -> dict[str, Tensor]:
    """All weights of a directory, by the names in its files; 16-bit floats come in single precision, bfloat16 as it is.

    Args:
        directory: directory with one file, or with all of its shards.
        pattern: pattern of the files' names.

    Raises:
        SprachbundError: no file, a shard is missing or damaged, a tensor is no weight, or less memory is free than the
            weights take.
    """
    paths = sorted(directory.glob(pattern))
    if not paths:
        raise SprachbundError(
            f"{directory} has no file {pattern}; only safetensors are read, copy them from where the model came from"
        )
    _check_complete(directory, paths)
    check_memory(sum(path.stat().st_size for path in paths), directory)
    weights: dict[str, Tensor] = {}
    for path in paths:
        for name, value in load_tensors(path).items():
            if re.search(_SURPLUS, name) or name.endswith(COUNTER):
                continue
            if not value.is_floating_point():
                raise SprachbundError(f"{path}: {name} is {value.dtype}, which no weight has; copy it again")
            if name in weights:
                raise SprachbundError(f"{path}: {name} is in another file too; copy the model again")
            weights[name] = value if value.dtype in _KEPT else value.float()
    return weights


def _check_complete(directory: Path, paths: Sequence[Path]) -> None:
    """See that every shard is there that the files' names, or the index, speak of."""
    for path in paths:
        if (match := _SHARD.search(path.name)) is not None:
            total = int(match[2])
            if total > len(paths):
                raise SprachbundError(
                    f"{directory} has {len(paths)} of {total} shards of its weights; copy the others too"
                )
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        said = read_object(index).get("weight_map")
        if not isinstance(said, dict) or not all(isinstance(name, str) for name in said.values()):
            raise SprachbundError(f"{index} has no weight_map from names to files; copy it again")
        if missing := sorted(set(said.values()) - {path.name for path in paths}):
            raise SprachbundError(f"{directory} lacks {missing[0]}, which {index.name} names; copy it too")


def fill(
    model: nn.Module, weights: Mapping[str, Tensor], source: str | Path, files: Sequence[Path] = ()
) -> None:
    """Give a model on the meta device its weights, in the precision that they have; it is changed in place.

    Args:
        model: model without weights.
        weights: weights under the model's own names; a copy of a tied matrix may be among them.
        source: source of the weights, for errors.
        files: files that they are mapped from; see `sprachbund.models.weights.check_once`.

    Raises:
        SprachbundError: weights are missing, too many, of another shape, of several precisions, or not finite.
    """
    wanted = model.state_dict()
    # The output matrix of a tied model is in some files, and a copy of the embedding.
    check_names(
        weights,
        wanted,
        source,
        ignored=(r"(^|\.)lm_head\.weight$",) if "lm_head.weight" not in wanted else (),
    )
    own = {name: weights[name] for name in wanted}
    for name, like in wanted.items():
        if own[name].shape != like.shape:
            raise SprachbundError(
                f"{source}: {name} has shape {tuple(own[name].shape)}, config.json asks for {tuple(like.shape)}; "
                "they do not fit, copy the model again"
            )
    if len({value.dtype for value in own.values() if value.is_floating_point()}) > 1:
        # Such as norms in single precision beside bfloat16.
        own = {name: value.float() if value.is_floating_point() else value for name, value in own.items()}
    check_finite(own, source, files)
    model.load_state_dict(own, assign=True)


# Chat templates.


class ChatTemplate:
    """A chat template of a tokenizer, rendered in a sandbox, as transformers does.

    Args:
        template: Jinja source.
        tokens: special tokens by the names that templates use, such as `bos_token`.
        source: file that it is from, for errors.
    """

    def __init__(self, template: str, tokens: Mapping[str, str], source: str) -> None:
        self.template, self.tokens, self.source = template, dict(tokens), source

    @classmethod
    def read(cls, directory: Path) -> "ChatTemplate | None":
        """The template of a directory, None where it has none.

        Raises:
            SprachbundError: a file that is broken.
        """
        settings_path = directory / "tokenizer_config.json"
        settings = read_object(settings_path) if settings_path.is_file() else {}
        tokens = {
            name: token
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (token := _token_text(settings.get(name))) is not None
        }
        for name in ("chat_template.jinja", "chat_template.json", "processor_config.json"):
            path = directory / name
            if not path.is_file():
                continue
            if path.suffix == ".jinja":
                try:
                    return cls(path.read_text(encoding="utf-8"), tokens, str(path))
                except (OSError, UnicodeDecodeError) as error:
                    raise SprachbundError(f"{path} cannot be read ({error}); copy it again") from error
            said = read_object(path).get("chat_template")
            if isinstance(said, str):
                return cls(said, tokens, str(path))
        said = settings.get("chat_template")
        if isinstance(said, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
            said = named.get("default")
        return cls(said, tokens, str(settings_path)) if isinstance(said, str) else None

    def render(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> str:
        """Text of a conversation, up to where the assistant begins.

        Args:
            messages: messages of "role" and "content".
            values: more variables of the template.

        Raises:
            SprachbundError: the template is broken, refuses the conversation, or does what the sandbox forbids.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: ""  # a date would make texts depend on the day
        try:
            text: str = environment.from_string(self.template).render(
                messages=list(messages), add_generation_prompt=True, **self.tokens, **values
            )
        except Exception as error:  # a template may raise whatever Python can
            raise SprachbundError(
                f"{self.source}: the chat template cannot be used ({first_line(error)[:200]}); copy it again"
            ) from error
        return text


def _token_text(said: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object that holds one."""
    if isinstance(said, dict):
        said = said.get("content")
    return said if isinstance(said, str) else None
