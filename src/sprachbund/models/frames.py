"""Whole recordings for models that write one token for every frame: their speech is one piece of a stream.

Shapes: B utterances, T frames, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sprachbund.models.base import Features, FrameDecoder, Memory


def whole_features(decoder: FrameDecoder, samples: Sequence[np.ndarray]) -> Features:
    """`Family.features` of such a model: the frames of whole utterances, silence before and behind them among them.

    Args:
        decoder: of the model.
        samples: B utterances, each (N,) at 16 kHz.
    """
    rows = []
    for one in samples:
        front_end = decoder.front_end()
        rows.append(torch.cat([front_end.push(one), front_end.finish()]))
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Features(values=values, num_frames=torch.tensor([len(row) for row in rows]))


def whole_memory(decoder: FrameDecoder, features: Features) -> Memory:
    """`Family.encode` of such a model: the frames (B, T, D) of whole utterances, encoded.

    Args:
        decoder: of the model.
        features: what `whole_features` gave, on the device of the model.
    """
    states, _ = decoder.encode_frames(features.values, decoder.start_frames(len(features.values)))
    return Memory(states=states, num_frames=features.num_frames)
