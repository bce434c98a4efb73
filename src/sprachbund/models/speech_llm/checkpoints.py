"""Speech encoders and language models of transformers, and adapters of peft.

Both packages are optional dependencies: they are imported when a speech LLM is loaded. Shapes: B utterances, T feature
frames, S states.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.hub import NO_CODE, check_config, one_line, optional_setting, read_model
from sprachbund.models.seamless.model import stacked_log_mel
from sprachbund.models.speech_llm.config import LoraOptions
from sprachbund.models.speech_llm.encoders import SpeechEncoder
from sprachbund.nn.conformer import valid_frames
from sprachbund.util.files import atomic_files

_ATTENTION = ("q_proj", "v_proj")
ADAPTED: dict[str, tuple[str, ...]] = {
    # WavLM's attention reads its projections' weights, not their outputs: adapters there would never be heard.
    "wavlm": ("intermediate_dense", "output_dense"),
    "wav2vec2": _ATTENTION,
    "hubert": _ATTENTION,
    "wav2vec2-bert": ("linear_q", "linear_v"),
}
"""Model types of transformers whose encoders are taken, and the linear layers that adapters go on."""
_SHORTEST_S = 0.04
_LLM_SURPLUS = (r"rotary_emb\.inv_freq$", r"attn\.(masked_)?bias$", r"^lm_head\.weight$")
"""Surplus weights of language models: tables that were stored once, and an output matrix that is tied."""
_SPEECH_SURPLUS = (
    r"^(lm_head|quantizer|project_q|project_hid|final_proj|label_embs_concat|classifier|projector|layer_weights)\b",
)
"""Surplus weights of speech encoders: heads that they were trained with."""
_FULL_ATTENTION = {"full_attention", "sliding_attention"}


def library() -> ModuleType:
    """The package transformers. Raises SprachbundError when it is not installed, with the way to install it."""
    try:
        import transformers
    except ImportError:
        raise SprachbundError(
            "speech LLMs need the packages transformers and peft; run: pip install 'sprachbund[speech-llm]'"
        ) from None
    return transformers


class TransformersSpeech(SpeechEncoder):
    """WavLM, wav2vec 2.0, HuBERT, w2v-BERT 2.0 and their relatives of transformers; XLS-R and MMS are wav2vec 2.0.

    Features of the first three are samples (B, T, 1), each utterance normalised if the checkpoint asks for it.

    Args:
        encoder: the model of transformers, without a head.
        extractor: its feature extractor.

    Raises:
        SprachbundError: another type of model.
    """

    kind = "transformers"
    max_window_s = 30.0  # ours: no checkpoint states a limit, and attention grows with the square
    is_log_mel = False

    def __init__(self, encoder: Any, extractor: Any) -> None:
        super().__init__()
        config = encoder.config
        if config.model_type not in ADAPTED:
            raise SprachbundError(
                f"speech encoders of type {config.model_type!r} are not taken; known: whisper, {', '.join(ADAPTED)}"
            )
        self.encoder = encoder
        self.extractor: Any = extractor
        self.width: int = optional_setting(config, "output_hidden_size") or config.hidden_size
        self.adapted = ADAPTED[config.model_type]
        self.takes_samples = config.model_type != "wav2vec2-bert"
        self.frames_per_s = SAMPLE_RATE if self.takes_samples else 50
        stride = math.prod(config.conv_stride) if self.takes_samples else 1
        adapter = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
        self.frame_s = stride * adapter / self.frames_per_s
        # Normalised over time, or convolved behind the end, a row would hear its neighbours' padding.
        self.one_by_one = optional_setting(config, "feat_extract_norm") == "group" or config.add_adapter
        self.shows_layers = not self.one_by_one

    @property
    def layers(self) -> Sequence[nn.Module]:
        """As `SpeechEncoder`."""
        layers: Sequence[nn.Module] = self.encoder.encoder.layers
        return layers

    def features(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        shortest = round(_SHORTEST_S * SAMPLE_RATE)
        padded = [np.pad(s, (0, max(0, shortest - len(s)))) for s in samples]
        if not self.takes_samples:
            return stacked_log_mel(self.extractor, padded)
        rows = [self.extractor(s, sampling_rate=SAMPLE_RATE).input_values[0] for s in padded]
        values = nn.utils.rnn.pad_sequence([torch.as_tensor(r).float() for r in rows], batch_first=True)
        return values[..., None], torch.tensor([len(s) for s in padded])

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        if self.one_by_one and len(values) > 1:
            alone = [self(v[None, :n], n[None]) for v, n in zip(values, num_frames, strict=True)]
            states = nn.utils.rnn.pad_sequence([s[0] for s, _ in alone], batch_first=True)
            return states, torch.cat([n for _, n in alone])
        dtype = next(self.encoder.parameters()).dtype
        inputs = (values[..., 0] if self.takes_samples else values).to(dtype)
        mask = valid_frames(num_frames, values.shape[1]).long()
        states = self.encoder(inputs, attention_mask=mask).last_hidden_state
        lengths = self.encoder._get_feat_extract_output_lengths(num_frames).long()
        return states, lengths.clamp(min=1, max=states.shape[1])

    def settings(self) -> dict[str, Any]:
        """As `SpeechEncoder`."""
        return {"model_type": self.encoder.config.model_type}


def context_of(llm: Any) -> int:
    """The most tokens that a language model reads at once; with a sliding window, what fits into that.

    Raises:
        SprachbundError: a model that does not attend to all it has read (recurrent layers and the like).
    """
    config = llm.config.get_text_config()
    # Of types that do not name the kind of each layer, such as Phi-3 and Mistral, all have the window, if there is one.
    usual = "sliding_attention" if optional_setting(config, "sliding_window") else "full_attention"
    kinds = set(optional_setting(config, "layer_types") or [usual])
    longest = optional_setting(config, "max_position_embeddings")
    if not kinds <= _FULL_ATTENTION or longest is None:
        odd = ", ".join(sorted(kinds - _FULL_ATTENTION)) or "no max_position_embeddings"
        raise SprachbundError(
            f"a language model of type {config.model_type!r} with {odd} is not taken; give one whose layers attend "
            "to everything before, such as Llama or Qwen2"
        )
    return min(longest, config.sliding_window) if "sliding_attention" in kinds else int(longest)


def adapt(module: nn.Module, names: Sequence[str], options: LoraOptions) -> None:
    """Put adapters onto the linear layers whose names end so, in place, and freeze everything else.

    Args:
        module: is changed in place.
        names: last parts of the names of its linear layers; without any it is only frozen.
        options: rank and scale of the adapters.

    Raises:
        SprachbundError: no layer has such a name, or peft is not installed.
    """
    if not names:
        module.requires_grad_(False)
        return
    kinds = (nn.Linear, library().pytorch_utils.Conv1D)  # the latter is GPT-2's name for a linear layer
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        if error.name != "peft":  # a package that peft needs
            raise
        raise SprachbundError(
            "speech LLMs need the package peft; run: pip install 'sprachbund[speech-llm]'"
        ) from None

    module.requires_grad_(False)
    linear = {name: part for name, part in module.named_modules() if isinstance(part, kinds)}
    last = {name.rpartition(".")[2] for name in linear}
    if missing := sorted(set(names) - last):
        raise SprachbundError(
            f"lora: no linear layer is called {missing[0]!r}; there are {', '.join(sorted(last))}"
        )
    chosen = [name for name in linear if name.rpartition(".")[2] in names]
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=chosen)
    inject_adapter_in_model(config, module)


def is_adapter(name: str) -> bool:
    """Whether a weight of that name belongs to an adapter."""
    return ".lora_" in name


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module with adapters, under the names that they had without, and the adapters left out."""
    state = module.state_dict()
    return {name.replace(".base_layer.", "."): w for name, w in state.items() if not is_adapter(name)}


def read_llm(directory: Path, dtype: torch.dtype) -> Any:
    """The language model in a directory of the Hugging Face layout. Raises SprachbundError when it cannot be read."""
    return _read_model(library().AutoModelForCausalLM, directory, _LLM_SURPLUS, dtype)


def read_speech(directory: Path, dtype: torch.dtype) -> TransformersSpeech:
    """A speech encoder of transformers in a directory. Raises SprachbundError when it cannot be read."""
    extractor = read_part(library().AutoFeatureExtractor, directory)
    model = _read_model(library().AutoModel, directory, _SPEECH_SURPLUS, dtype)
    with one_line(directory):
        return TransformersSpeech(model, extractor)


def _read_model(auto: Any, directory: Path, surplus: Sequence[str], dtype: torch.dtype) -> Any:
    if (directory / "config.json").is_file():
        check_config(directory / "config.json")
    config = read_part(library().AutoConfig, directory)
    return read_model(
        auto,
        directory,
        config,
        build=partial(auto.from_config, **NO_CODE),
        surplus=surplus,
        lacking=(r"masked_spec_embed$",),
        dtype=dtype,
        **NO_CODE,
    )


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer in a directory. Raises SprachbundError when there is none."""
    tokenizer = read_part(library().AutoTokenizer, directory)
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise SprachbundError(
            f"{directory / 'tokenizer_config.json'}: model_max_length is {repr(longest)[:60]}, not a number; "
            "copy it again"
        )
    return tokenizer


def write_part(part: Any, directory: Path) -> None:
    """Write a model of transformers, without its adapters, for anybody to load."""
    for old in directory.glob("*.safetensors*"):
        old.unlink()
    with _quiet(), atomic_files(directory, last="*.safetensors*") as draft:
        part.save_pretrained(draft, state_dict=plain_weights(part))
        for path in draft.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes for the owner alone


def read_part(kind: Any, directory: Path, **options: Any) -> Any:
    """The part of a model that transformers reads from a directory. Raises SprachbundError when it cannot."""
    with one_line(directory), _quiet():
        return kind.from_pretrained(directory, local_files_only=True, **NO_CODE, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars: what is said to people is said by the command."""
    logging = library().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
