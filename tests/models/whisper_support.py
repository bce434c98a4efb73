"""Random Whisper checkpoints of any shape, made by transformers, and a vocabulary in Whisper's order."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig as HFWhisperConfig
from transformers import WhisperForConditionalGeneration

from sprachbund.models.whisper import CheckpointFiles, Whisper, WhisperConfig, WhisperTokens
from sprachbund.models.whisper.io import from_transformers

LANGUAGES = ("en", "zh", "de", "es", "ru", "fr", "it", "iw", "jw", "yue")
"""Tags as Whisper writes them; Hebrew and Javanese by their withdrawn codes."""

TINY = WhisperConfig(
    vocabulary_size=2000,
    width=32,
    encoder_layers=2,
    encoder_heads=2,
    encoder_feed_forward_width=48,
    decoder_layers=2,
    decoder_heads=4,
    decoder_feed_forward_width=64,
    max_frames=100,
    max_tokens=64,
)
"""A model of a 2 s window that encodes in a millisecond; every size differs where sizes may differ."""


def special_names(languages: tuple[str, ...] = LANGUAGES, *, last_timestamp: int = 1500) -> list[str]:
    tags = [f"<|{tag}|>" for tag in languages]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    stamps = [f"<|{i * 0.02:.2f}|>" for i in range(last_timestamp + 1)]
    return ["<|endoftext|>", "<|startoftranscript|>", *tags, *tasks, "<|notimestamps|>", *stamps]


def make_tokenizer(names: list[str] | None = None) -> Tokenizer:
    """Single bytes as text tokens, then the special tokens in Whisper's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names or special_names()])
    return tokenizer


def make_transformers_model(config: WhisperConfig, *, seed: int = 0) -> WhisperForConditionalGeneration:
    """The transformers model of these sizes, weights large enough that logits spread over several units.

    Biases and norms are random too, so that none can be lost unseen.
    """
    end = 256  # where `make_tokenizer` puts it
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(HFWhisperConfig(**config.to_transformers(), **ids))
    model.to_empty(device="cpu").tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.1 if parameter.ndim == 1 else 0.1 if "embed" in name else parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, std, generator=generator)
    return model.eval()


def make_directory(
    path: Path,
    config: WhisperConfig = TINY,
    *,
    names: list[str] | None = None,
    generation: dict[str, object] | None = None,
    extra_config: dict[str, object] | None = None,
    seed: int = 0,
) -> WhisperForConditionalGeneration:
    """A model directory as transformers writes it, with a tokenizer; returns the model in it."""
    model = make_transformers_model(config, seed=seed)
    model.save_pretrained(path)
    make_tokenizer(names).save(str(path / "tokenizer.json"))
    settings = {"is_multilingual": True, **(generation or {})}
    (path / "generation_config.json").write_text(json.dumps(settings))
    if extra_config:
        content = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**content, **extra_config}))
    return model


def transplanted(
    hf_model: WhisperForConditionalGeneration, config: WhisperConfig, **options: object
) -> Whisper:
    """Our model with the same weights, and a vocabulary."""
    tokens = WhisperTokens(make_tokenizer(), config.vocabulary_size)
    checkpoint_files = CheckpointFiles(generation={"is_multilingual": True})
    with torch.device("meta"):
        model = Whisper(config, **{"tokens": tokens, "checkpoint_files": checkpoint_files, **options})
    model.load_state_dict(from_transformers(hf_model.state_dict(), model, source="test"), assign=True)
    return model.eval()


def with_tokens(
    sizes: WhisperConfig = TINY, names: list[str] | None = None, **checkpoint_files: object
) -> Whisper:
    """A model whose weights do not matter."""
    tokens = WhisperTokens(make_tokenizer(names), sizes.vocabulary_size)
    checkpoint_files = {"generation": {"is_multilingual": True}, **checkpoint_files}
    with torch.device("meta"):
        return Whisper(sizes, tokens=tokens, checkpoint_files=CheckpointFiles(**checkpoint_files))
