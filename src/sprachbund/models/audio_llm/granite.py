"""Granite Speech (arXiv 2505.08699): a conformer of blocks, a Q-Former over windows, and a Granite with adapters.

The adapters belong to speech: they were trained so that the language model reads speech tokens, and texts are left to
it as it is. Speech is in every prompt here, so they are always in use. "Granite Speech Plus" shows the Q-Former lower
layers of the encoder too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import HOP, SAMPLE_RATE, WINDOW
from sprachbund.audio.features import htk_log_mel
from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.config import GraniteSpeechConfig
from sprachbund.models.audio_llm.model import AudioLLM
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.base import Target
from sprachbund.models.causal_lm import ChatTemplate
from sprachbund.nn.block_conformer import BlockConformer, WindowProjector
from sprachbund.text.languages import language_name

_STACKED = 2
TRANSCRIBE = "can you transcribe the speech into a written format?"
TRANSLATE = "can you translate the speech to {language}?"


@dataclass(frozen=True, kw_only=True)
class StackedFeatures:
    """Two frames of log-mel side by side, every 20 ms.

    Attributes:
        num_mel_bins: M of a frame.
    """

    num_mel_bins: int

    def __call__(self, samples: np.ndarray) -> tuple[Tensor, int]:
        """Features (T, 2 M) of an utterance, which is filled up to 25 ms."""
        padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
        mel = htk_log_mel(torch.as_tensor(padded, dtype=torch.float32), self.num_mel_bins).T
        stacked = mel[: len(mel) // _STACKED * _STACKED].reshape(-1, _STACKED * self.num_mel_bins)
        return stacked, stacked.shape[0]


class AdaptedLinear(nn.Module):
    """A linear layer and its low-rank adapter (arXiv 2106.09685, equation 3).

    Args:
        base: as it is without speech.
        rank: rank of the adapter.
        scale: factor of what the adapter adds.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_a = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D of the layer)."""
        added: Tensor = self.base(x) + self.lora_b(self.lora_a(x)) * self.scale
        return added


def adapt(model: nn.Module, ranks: Mapping[str, int], alpha: float, *, rank_stabilised: bool) -> None:
    """Put adapters onto linear layers, in place.

    Args:
        model: any.
        ranks: r of each layer's adapter, by the layer's name.
        alpha: adapters are scaled by alpha / r.
        rank_stabilised: by alpha / sqrt(r) (arXiv 2312.03732).

    Raises:
        SprachbundError: there is no such linear layer.
    """
    known = dict(model.named_modules())
    for name, rank in ranks.items():
        layer = known.get(name)
        if not isinstance(layer, nn.Linear):
            raise SprachbundError(
                f"adapters are for {name}, which is no linear layer of this model; copy it again"
            )
        scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        model.set_submodule(name, AdaptedLinear(layer, rank, scale))


class GraniteSpeech(AudioLLM):
    """A recogniser of five languages or six that translates between English and others.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
        ends: tokens that end a row.
        template: writes the conversation.

    Attributes:
        adapter_names: names of the weights of adapters: our names to those in the file that they came from.

    Raises:
        SprachbundError: the vocabulary lacks the token of speech, or the template has no place for it.
    """

    frames_per_s = SAMPLE_RATE // HOP // _STACKED

    def __init__(
        self,
        config: GraniteSpeechConfig,
        values: Mapping[str, Any],
        tokens: LLMTokens,
        ends: Sequence[int],
        template: ChatTemplate,
    ) -> None:
        super().__init__(config, values, tokens, ends)
        self.encoder = BlockConformer(config.encoder_config.shape)
        num_queries = config.window_size // config.downsample_rate
        self.projector = WindowProjector(
            config.projector_config.shape, config.window_size, num_queries, self.llm.width
        )
        self.front_end = StackedFeatures(num_mel_bins=config.encoder_config.input_dim // _STACKED)
        self.frame_s = config.window_size / num_queries / self.frames_per_s
        own = config.sprachbund
        self._transcribe, self._translate = own.transcribe or TRANSCRIBE, own.translate or TRANSLATE
        self._speech, self._template = tokens.name(config.audio_token_index), template
        self.adapter_names: dict[str, str] = {}
        self._made: dict[str, tuple[list[int], list[int]]] = {}

    def hear(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Speech tokens (B, P, D) of features (B, T, M), and how many (B,) are each utterance's."""
        states = self.encoder(values, num_frames)
        assert isinstance(self.projector, WindowProjector)
        return self.projector(states), self.projector.num_tokens(num_frames)

    def around(self, target: Target) -> tuple[list[int], list[int]]:
        """One turn of the user, the instruction behind the speech, and the beginning of the assistant's."""
        if target.source in (None, target.language):
            asked = self._transcribe
        else:
            asked = self._translate.format(language=language_name(target.language))
        if asked not in self._made:
            whole = self._template.render([{"role": "user", "content": f"{self._speech}{asked}"}])
            parts = whole.split(self._speech)
            if len(parts) != 2:
                raise SprachbundError(
                    f"{self._template.source}: the chat template does not write {self._speech} once; copy it again"
                )
            before, behind = (self.tokens.markup_to_tokens(part) for part in parts)
            self._made[asked] = before, behind or [self.end_token]
        return self._made[asked]
