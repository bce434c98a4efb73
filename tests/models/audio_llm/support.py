"""Random Voxtral, Granite Speech and Qwen3-ASR checkpoints in the true layout, made and written by transformers."""

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sprachbund.models.audio_llm import AudioLLM, load
from tests.models.fastconformer.support import SENTENCES

KINDS = ("voxtral", "granite_speech", "granite_speech_plus", "qwen3_asr")
BINS = 16
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""As in Mistral's vocabularies, without its cases of letters."""
_LM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
_VOXTRAL = {
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}
NUM_SPECIAL = 40
AUDIO = {"voxtral": "[AUDIO]", "qwen3_asr": "<|audio_pad|>"}
"""What stands for speech; "<|audio|>" in Granite."""
GRANITE_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>You are Granite."
    "<|end_of_text|>\n' }}{%- endif %}{%- for message in messages %}{{ '<|start_of_role|>' + message['role'] + "
    "'<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
QWEN_TEMPLATE = (
    "{%- set ns = namespace(system='') %}{%- for m in messages if m.role == 'system' %}{%- for part in m.content %}"
    "{%- set ns.system = ns.system + part.text %}{%- endfor %}{%- endfor %}"
    "{{ '<|im_start|>system\n' + ns.system + '<|im_end|>\n' }}{%- for m in messages if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{%- for part in m.content %}{%- if part.type == 'audio' %}"
    "{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}{%- else %}{{ part.text }}{%- endif %}{%- endfor %}"
    "{{ '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Conversations in the form of the published models."""
_SPECIAL = {
    "granite_speech": ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>"],
    "qwen3_asr": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>"),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory, and the model in it as transformers and as we have it.

    Attributes:
        processor: of transformers, where it does without more packages: of Qwen3-ASR.
    """

    kind: str
    directory: Path
    hf_model: Any
    processor: Any
    model: AudioLLM


def make(
    root: Path, kind: str, *, seed: int = 0, adapters: bool = True, positions: int = 1500, **text: Any
) -> Checkpoint:
    """Write a checkpoint with transformers, and load it.

    Args:
        root: that its folder is made in.
        kind: one of `KINDS`.
        seed: of its weights.
        adapters: whether a Granite Speech has some.
        positions: states of a Voxtral's window; 1500 are its 30 s.
        text: changes of the language model's configuration.
    """
    torch.manual_seed(seed)
    directory = root / kind
    tokenizer: Any = None
    if kind == "voxtral":
        directory.mkdir(parents=True)
        size = write_tekken(directory)
    else:
        tokenizer = make_tokenizer("granite_speech" if kind.startswith("granite") else kind)
        size = len(tokenizer) + 3  # matrices are rounded up
    given = positions if kind == "voxtral" else tokenizer
    hf_model = _BUILDERS[kind]({**_LM, "vocab_size": size, **text}, given)
    enliven(hf_model)
    hf_model.eval().save_pretrained(directory)
    if kind.startswith("granite"):
        if adapters:
            add_adapters(hf_model, directory)
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "has_lora_adapter": adapters}))
    processor: Any = None
    if kind == "qwen3_asr":
        extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=BINS)
        processor = transformers.Qwen3ASRProcessor(extractor, tokenizer, chat_template=QWEN_TEMPLATE)
        processor.save_pretrained(directory)
    elif kind == "voxtral":
        transformers.WhisperFeatureExtractor(feature_size=BINS).save_pretrained(directory)
    else:  # transformers' own extractor asks for torchaudio
        tokenizer.save_pretrained(directory)
        (directory / "preprocessor_config.json").write_text(json.dumps(_granite_extractor()))
    return Checkpoint(
        kind=kind, directory=directory, hf_model=hf_model, processor=processor, model=load(directory)
    )


def add_adapters(hf_model: Any, directory: Path) -> None:
    """Put adapters onto a model, and their files beside its own, as the published ones lie."""
    from peft import LoraConfig

    hf_model.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    hf_model.eval()
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)  # a second copy of the model is among what it writes
        for path in Path(folder).glob("adapter_*"):
            shutil.copy(path, directory)


def _granite_extractor() -> dict[str, Any]:
    return {
        "feature_extractor_type": "GraniteSpeechFeatureExtractor",
        "sampling_rate": 16_000,
        "melspec_kwargs": {
            "sample_rate": 16_000,
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 160,
            "n_mels": BINS,
        },
        "projector_window_size": 15,
        "projector_downsample_rate": 5,
    }


def make_tokenizer(kind: str) -> Any:
    """Byte pairs, with a chat template."""
    tokenizer = _trained(300)
    tokenizer.add_special_tokens([AddedToken(name, special=name != "<asr_text>") for name in _SPECIAL[kind]])
    own: dict[str, Any] = {"eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    if kind == "qwen3_asr":
        own = {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": {
                "audio_token": "<|audio_pad|>",
                "audio_bos_token": "<|audio_start|>",
                "audio_eos_token": "<|audio_end|>",
            },
        }
    template = QWEN_TEMPLATE if kind == "qwen3_asr" else GRANITE_TEMPLATE
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **own)


def _trained(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES * 3, "language English", "language German"], trainer)
    return tokenizer


def write_tekken(directory: Path, special: Mapping[int, str] = _VOXTRAL, **more: Any) -> int:
    """Write a vocabulary in Mistral's form; its size, special tokens included.

    Args:
        directory: for it.
        special: names of special tokens by number.
        more: other parts of the file.
    """
    pieces = [bytes([byte]) for byte in range(256)]
    trained = _trained(300)
    names = trained.get_vocab()
    later = sorted((name for name in names if len(name) > 1), key=lambda name: names[name])
    pieces += [trained.decode([names[name]]).encode() for name in later if name.isascii() or name[0] == "Ġ"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(dict.fromkeys(pieces))
    ]
    size = NUM_SPECIAL + len(vocab)
    file = {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": size,
            "default_num_special_tokens": NUM_SPECIAL,
            "version": "v7",
        },
        "vocab": vocab,
        "special_tokens": [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in special.items()
        ],
        **more,
    }
    (directory / "tekken.json").write_text(json.dumps(file))
    return size


def _voxtral(text: dict[str, Any], positions: int) -> Any:
    config = transformers.VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": BINS,
            "max_source_positions": positions,
        },
        text_config={"model_type": "llama", "head_dim": 8, **text},
        audio_token_id=24,
    )
    return transformers.VoxtralForConditionalGeneration(config)


def _granite(plus: bool) -> Any:
    def build(text: dict[str, Any], tokenizer: Any) -> Any:
        kind = "granite_speech_plus" if plus else "granite_speech"
        own = {"cat_hidden_layers": [0, 1]} if plus else {}
        config = transformers.AutoConfig.for_model(
            kind,
            encoder_config={
                "model_type": f"{kind}_encoder",
                "input_dim": 2 * BINS,
                "hidden_dim": 16,
                "num_layers": 3,
                "num_heads": 2,
                "dim_head": 8,
                "context_size": 20,
                "max_pos_emb": 32,
                "output_dim": 10,
                "conv_kernel_size": 5,
                **own,
            },
            projector_config={
                "model_type": "blip_2_qformer",
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "encoder_hidden_size": 48 if plus else 16,
                "cross_attention_frequency": 1 if plus else 2,
            },
            text_config={
                "model_type": "granite",
                "embedding_multiplier": 1.5,
                "residual_multiplier": 0.9,
                "attention_multiplier": 0.5,
                "logits_scaling": 4.0,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.eos_token_id,
                **text,
            },
            audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        )
        return transformers.AutoModelForMultimodalLM.from_config(config)

    return build


def _qwen(text: dict[str, Any], tokenizer: Any) -> Any:
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = transformers.Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder",
            "d_model": 16,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "encoder_layers": 2,
            "num_mel_bins": BINS,
            "downsample_hidden_size": 4,
            "output_dim": text["hidden_size"],
            "n_window_infer": 200,
        },
        text_config={"model_type": "qwen3", "head_dim": 8, **text},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    model = transformers.Qwen3ASRForConditionalGeneration(config)
    model.generation_config.eos_token_id = ends
    return model


_BUILDERS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "voxtral": _voxtral,
    "granite_speech": _granite(plus=False),
    "granite_speech_plus": _granite(plus=True),
    "qwen3_asr": _qwen,
}


def enliven(model: Any) -> None:
    """Random weights that write varied text, and running means that are not noughts and ones."""
    tied = not any("lm_head" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
            if name.endswith("lm_head.weight"):
                parameter.mul_(3.0)
            if name.endswith("embed_tokens.weight"):
                parameter.mul_(0.3 if tied else 3.0)
            if "language_model" in name and name.endswith(
                ("o_proj.weight", "down_proj.weight") if tied else ("q_proj.weight",)
            ):
                parameter.mul_(3.0)  # or a token would follow itself for ever where matrices are tied
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def prompt_ids(made: Checkpoint, num_tokens: int, source: str | None, target: str) -> list[int]:
    """The prompt with `num_tokens` of speech, written out as the published models are asked.

    Voxtral's is as mistral-common encodes a transcription request or a conversation, Granite's by transformers'
    tokenizer and template.
    """
    from sprachbund.models.audio_llm.granite import TRANSCRIBE, TRANSLATE
    from sprachbund.models.audio_llm.voxtral import TRANSLATE as VOXTRAL_TRANSLATE

    languages = {"de": "German", "en": "English", "fr": "French"}
    if made.kind == "voxtral":
        encode = made.model.tokens.text_to_tokens  # compared with tiktoken's way in a test of its own
        speech = [1, 3, 25, *[24] * num_tokens]
        if source is None:
            return [*speech, 4, 34]
        if source == target:
            return [*speech, 4, *encode(f"lang:{target}"), 34]
        return [*speech, *encode(VOXTRAL_TRANSLATE.format(language=languages[target])), 4]
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.directory)
    asked = TRANSCRIBE if source in (None, target) else TRANSLATE.format(language=languages[target])
    talk = [{"role": "user", "content": f"{'<|audio|>' * num_tokens}{asked}"}]
    whole = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(whole, add_special_tokens=False).input_ids)


def noises(*seconds: float) -> list[np.ndarray]:
    """Noises of so many seconds."""
    from tests.models.fastconformer.support import sound

    return [sound(each, seed) for seed, each in enumerate(seconds, start=1)]
