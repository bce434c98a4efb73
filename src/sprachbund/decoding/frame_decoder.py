"""Search with a model that writes one token for every frame: the likeliest, and those that are text make the text.

Shapes: B utterances, T frames, n targets of each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.state import Hypothesis, TokenFrames
from sprachbund.models.base import Family, FrameDecoder, FrameTokens, Memory, Target


@torch.inference_mode()
def search_frame_by_frame(
    family: Family,
    decoder: FrameDecoder,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
) -> list[list[Hypothesis]]:
    """Search in a model with a frame decoder.

    Args:
        family: the model.
        decoder: its frame decoder.
        memory: B encoded utterances.
        targets: B lists of equal length n; such a model writes what is spoken, so that all n are alike.
        options: the limit on tokens.

    Returns:
        B lists of n hypotheses. Frames of tokens are those of the speech: the silence in front of it and the delay of
        the text are taken off.

    Raises:
        SprachbundError: a language that the model does not write.
    """
    for target in {target for group in targets for target in group}:
        family.prompt(target)
    written, _ = decoder.write_frames(memory.states, decoder.start_frames(len(memory.states)))
    length = memory.states.shape[1]
    num_frames = [length] * len(targets) if memory.num_frames is None else memory.num_frames.tolist()
    is_text = decoder.is_text(written.tokens).cpu()
    return [
        [_hypothesis(decoder, row, frames, texts, options.max_tokens)] * len(group)
        for group, row, frames, texts in zip(targets, _rows(written), num_frames, is_text, strict=True)
    ]


def _rows(written: FrameTokens) -> list[tuple[Tensor, Tensor]]:
    return list(zip(written.tokens.cpu(), written.log_probs.cpu().double(), strict=True))


def _hypothesis(
    decoder: FrameDecoder,
    row: tuple[Tensor, Tensor],
    num_frames: int,
    is_text: Tensor,
    max_tokens: int | None,
) -> Hypothesis:
    tokens, log_probs = row
    at = is_text[:num_frames].nonzero()[:, 0]
    spoken = [max(0, frame - decoder.lead - decoder.delay) for frame in at.tolist()]
    frames = TokenFrames(
        begins=tuple(spoken),
        ends=tuple(frame + 1 for frame in spoken),
        log_probabilities=tuple(log_probs[at].tolist()),
    )
    return Hypothesis(
        tokens=tuple(tokens[at][:max_tokens].tolist()),
        # Of the text alone: a pause, however long, does not make it more doubtful.
        log_probability=float(log_probs[at][:max_tokens].sum()),
        finished=max_tokens is None or len(at) <= max_tokens,
        no_speech_log_probability=None,
        score=float(log_probs[:num_frames].sum()),
        frames=frames.first(max_tokens),
    )
