"""Random Kyutai STT checkpoints in the true layout, made and written by transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import KyutaiSpeechToTextFeatureExtractor, KyutaiSpeechToTextProcessor, TokenizersBackend

from sprachbund.models.kyutai import Kyutai, load
from tests.models.fastconformer.support import SENTENCES

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
NUM_PIECES = 64
BEGIN = NUM_PIECES
"""Token in front of the first, which the tokenizer does not know."""
NUM_CODES, NUM_CODEBOOKS = 16, 4
CODEC: dict[str, Any] = {
    "model_type": "mimi",
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": NUM_CODES,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": NUM_CODEBOOKS,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "sliding_window": 10,
    "upsample_groups": 32,
}
"""Strides and kernels are the published ones."""
DECODER: dict[str, Any] = {
    "vocab_size": NUM_PIECES + 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "sliding_window": 12,
    "ffn_dim": 64,
    "num_codebooks": NUM_CODEBOOKS,
    "codebook_vocab_size": NUM_CODES + 1,
    "audio_bos_token_id": NUM_CODES,
    "audio_pad_token_id": NUM_PIECES + 1 + NUM_CODEBOOKS * (NUM_CODES + 1),
    "bos_token_id": BEGIN,
    "pad_token_id": 3,
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory, and the model in it as transformers and as we have it."""

    directory: Path
    hf_model: Any
    processor: Any
    model: Kyutai


def make_tokenizer() -> Tokenizer:
    """Byte pairs behind "▁", as converted from SentencePiece; some tokens are those of padding and marks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [AddedToken(name, special=True) for name in SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=NUM_PIECES, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def randomise(hf_model: Any) -> None:
    """Weights under which texts differ from recording to recording and from frame to frame."""
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if name.endswith("layer_scale.scale"):
                parameter.uniform_(0.3, 1.0)
            elif parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_()
            else:
                parameter.normal_(std=1.5 * (parameter.numel() / len(parameter)) ** -0.5)
        for name, buffer in hf_model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_(std=8.0)  # about as large as what is quantised
            elif name.endswith("cluster_usage"):
                buffer.uniform_(0.5, 2.0)


def make(
    root: Path,
    *,
    seed: int = 0,
    delay_s: float = 0.5,
    prefix_s: float = 0.0,
    name: str = "stt-1b-en_fr",
    codec: Mapping[str, Any] = CODEC,
) -> Checkpoint:
    """Write a checkpoint with transformers, and load it.

    Args:
        root: where its directory is made.
        seed: of the weights.
        delay_s: how far the text is behind.
        prefix_s: silence in front of the speech.
        name: of the directory.
        codec: its sizes.
    """
    torch.manual_seed(seed)
    config = transformers.KyutaiSpeechToTextConfig(**DECODER, codec_config=dict(codec))
    hf_model: Any = transformers.KyutaiSpeechToTextForConditionalGeneration(config).eval()
    randomise(hf_model)
    directory = root / name
    hf_model.save_pretrained(directory)
    extractor = KyutaiSpeechToTextFeatureExtractor(
        audio_delay_seconds=delay_s, audio_silence_prefix_seconds=prefix_s
    )
    tokenizer = TokenizersBackend(
        tokenizer_object=make_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    processor = KyutaiSpeechToTextProcessor(extractor, tokenizer)
    processor.save_pretrained(directory)
    # It was randomised behind the codebooks that transformers keeps divided, so it is read again.
    read = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(directory).eval()
    return Checkpoint(directory=directory, hf_model=read, processor=processor, model=load(directory))


def speech(seconds: float, seed: int = 0, rate: int = 24_000) -> np.ndarray:
    """Noise whose loudness and colour change."""
    generator = np.random.default_rng(seed)
    size = round(seconds * rate)
    noise = generator.standard_normal(size)
    time = np.arange(size) / rate
    tone = np.sin(2 * np.pi * (200 + 300 * seed + 80 * np.sin(2 * np.pi * 1.7 * time)) * time)
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * (1.3 + 0.2 * seed) * time)
    made: np.ndarray = (loud * (0.3 * noise + 0.5 * tone)).astype(np.float32)
    return made
