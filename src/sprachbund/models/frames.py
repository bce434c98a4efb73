"""The common part of families that write frame by frame.

Shapes: B utterances, R rows, Q tokens, T frames, D width, L source languages.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Features, FrameDecoder, Memory, Target, equal_log_probs, not_written
from sprachbund.nn.decoder import DecoderCache


class TranscribesByFrames:
    """Methods of `sprachbund.models.base.Family` for models that transcribe by frames and are given no language.

    Attributes:
        name: kind of the model.
        source_languages: BCP-47 tags of what it hears and writes.
    """

    name: str
    source_languages: tuple[str, ...]

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Transcription of every language."""
        return frozenset((tag, tag) for tag in self.source_languages)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """All languages equal, (B, L): they are told apart by the text."""
        return equal_log_probs(memory, len(self.source_languages))

    def prompt(self, target: Target) -> list[int]:
        """None; it is given no language. Raises SprachbundError for a language that it does not write."""
        if target.language not in self.source_languages:
            raise not_written(target.language, self.source_languages)
        return []

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """Not there: it has no attention decoder. Arguments are those of `Family.start`.

        Args:
            memory: memory of B utterances.
            rows_per_memory: rows for each utterance.
            capacity: most tokens of a row.
            targets: targets of the R rows.

        Raises:
            SprachbundError: always.
        """
        raise SprachbundError(f"the model {self.name} writes by frames and has no attention decoder to start")

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Not there, as `start`. Arguments are those of `Family.step`.

        Args:
            tokens: (R, Q).
            cache: cache of the R rows.
            weights: weights of the cross-attention.

        Raises:
            SprachbundError: always.
        """
        raise SprachbundError(f"the model {self.name} writes by frames and has no attention decoder to step")

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """None: there is no token for it."""
        return None


# Whole recordings for models that write one token for every frame: their speech is one piece of a stream.


def whole_features(
    decoder: FrameDecoder, samples: Sequence[np.ndarray], device: torch.device | str
) -> Features:
    """`Family.features` of such a model: the frames of whole utterances, silence before and behind them among them.

    Args:
        decoder: decoder of the model.
        samples: B utterances, each (N,) at 16 kHz.
        device: device of the model.
    """
    rows = []
    for one in samples:
        front_end = decoder.front_end()
        rows.append(torch.cat([front_end.push(one), front_end.finish()]))
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    num_frames = torch.tensor([len(row) for row in rows])
    return Features(values=values.to(device), num_frames=num_frames.to(device))


def whole_memory(decoder: FrameDecoder, features: Features) -> Memory:
    """`Family.encode` of such a model: the frames (B, T, D) of whole utterances, encoded.

    Args:
        decoder: decoder of the model.
        features: output of `whole_features`.
    """
    states, _ = decoder.encode_frames(features.values, decoder.start_frames(len(features.values)))
    return Memory(states=states, num_frames=features.num_frames)
