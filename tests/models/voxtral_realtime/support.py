"""Random Voxtral Realtime checkpoints in the true layout, made and written by transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sprachbund.models.voxtral_realtime import VoxtralRealtime, load
from tests.models.audio_llm.support import enliven, write_tekken

BINS = 16
LEAD, DELAY, BEHIND = 3, 2, 11
"""Frames of silence in front of the speech, of the delay, and of silence that the processor puts behind the delay."""
BEGIN, END, PAD = 1, 2, 32
SAMPLES = 1280
"""Of a frame."""
_SPECIAL = {BEGIN: "<s>", END: "</s>", PAD: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory, and the model in it as transformers and as we have it."""

    directory: Path
    hf_model: Any
    model: VoxtralRealtime


def make(root: Path, *, seed: int = 0, lead: int = LEAD, delay: int = DELAY) -> Checkpoint:
    """Write a checkpoint with transformers, and load it.

    Args:
        root: that its folder is made in.
        seed: of its weights.
        lead: frames of silence before the speech.
        delay: frames that the text is behind.
    """
    torch.manual_seed(seed)
    directory = root / "voxtral_realtime"
    directory.mkdir(parents=True)
    audio = {
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
        "transcription_format": "streaming",
        "transcription_delay_ms": 80.0 * delay,
        "streaming_n_left_pad_tokens": lead,
    }
    size = write_tekken(directory, _SPECIAL, audio=audio)
    config = transformers.VoxtralRealtimeConfig(
        audio_config={
            "model_type": "voxtral_realtime_encoder",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 8,
            "num_mel_bins": BINS,
            "sliding_window": 30,
        },
        text_config={
            "model_type": "voxtral_realtime_text",
            "vocab_size": size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 9,
        },
    )
    hf_model = transformers.VoxtralRealtimeForConditionalGeneration(config)
    enliven(hf_model)
    with torch.no_grad():  # so that what is written depends on what is heard
        hf_model.model.multi_modal_projector.linear_2.weight.mul_(4.0)
    hf_model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "VoxtralRealtimeFeatureExtractor",
                "sampling_rate": 16_000,
                "hop_length": 160,
                "n_fft": 400,
                "win_length": 400,
                "feature_size": BINS,
                "global_log_mel_max": 1.5,
            }
        )
    )
    return Checkpoint(directory=directory, hf_model=hf_model, model=load(directory))


def padded(samples: np.ndarray, lead: int = LEAD, delay: int = DELAY) -> np.ndarray:
    """A sound with silence around it, as mistral-common pads it for a model that streams."""
    behind = -len(samples) % SAMPLES + (delay + BEHIND) * SAMPLES
    return np.pad(samples, (lead * SAMPLES, behind))


def reference_mel(
    made: Checkpoint, samples: np.ndarray, lead: int = LEAD, delay: int = DELAY
) -> torch.Tensor:
    """Features (1, M, N) that transformers' extractor makes of a sound."""
    extractor = transformers.VoxtralRealtimeFeatureExtractor.from_pretrained(made.directory)
    features = extractor(padded(samples, lead, delay), sampling_rate=16_000, return_tensors="pt")
    return features.input_features


def reference_tokens(
    made: Checkpoint, samples: np.ndarray, lead: int = LEAD, delay: int = DELAY
) -> list[int]:
    """Tokens that transformers writes behind the prompt, greedily."""
    prompt = torch.tensor([[BEGIN, *[PAD] * (lead + delay)]])
    out = made.hf_model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        input_features=reference_mel(made, samples, lead, delay),
        num_delay_tokens=delay,
        do_sample=False,
        pad_token_id=PAD,
        max_new_tokens=10_000,  # fewer are written: one for every frame
    )
    return out[0, prompt.shape[1] :].tolist()
