"""Search in models that write frame by frame: a transducer head in the place of an attention decoder.

Shapes: B memories, R rows (n for each memory).
"""

from collections.abc import Sequence
from typing import Any

import torch

from sprachbund.decoding.options import AUTO, NONE, DecodingOptions
from sprachbund.decoding.rows import Hypothesis
from sprachbund.decoding.transducer_beam import Beam, transducer_beam
from sprachbund.decoding.transducer_greedy import TransducerHypothesis, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target
from sprachbund.nn.transducer import Transducer, TransducerState


def writes_by_frames(family: Family) -> bool:
    """Whether a family's text comes from a transducer."""
    return bool(getattr(family, "writes_by_frames", False))


def start_by_frames(family: Family, targets: Sequence[Target]) -> TransducerState:
    """The state of rows (R,) in front of their first frame, their prompts read."""
    transducer = _transducer(family)
    state = transducer.start(len(targets))
    prompts = torch.tensor([family.prompt(target) for target in targets], device=state.num_frames.device)
    for tokens in prompts.T:
        state = transducer.advance(tokens, state)
    return state


@torch.inference_mode()
def search_by_frames(
    family: Family, memory: Memory, targets: Sequence[Sequence[Target]], options: DecodingOptions
) -> list[list[Hypothesis]]:
    """As `search`, which hands over to this.

    Raises:
        SprachbundError: options that only an attention decoder has.
    """
    refuse_options(family, options, "frame by frame")
    flat = [target for group in targets for target in group]
    each = len(targets[0])
    assert memory.num_frames is not None
    states = memory.states.repeat_interleave(each, 0)
    num_frames = memory.num_frames.repeat_interleave(each, 0)
    start = start_by_frames(family, flat)
    if options.beam_size == 1:
        found, _ = transducer_greedy(_transducer(family), states, num_frames, start)
    else:
        rows = range(len(flat))
        empty = TransducerHypothesis()
        beams = [
            Beam(hypotheses=(empty,), path_scores=(0.0,), state=start.take(torch.tensor([r]))) for r in rows
        ]
        ended = transducer_beam(_transducer(family), states, num_frames, beams, beam_size=options.beam_size)
        found = [beam.best for beam in ended]
    best = [_hypothesis(one, options.max_tokens) for one in found]
    return [best[i : i + each] for i in range(0, len(best), each)]


def _hypothesis(found: TransducerHypothesis, max_tokens: int | None) -> Hypothesis:
    tokens = found.tokens[:max_tokens]
    return Hypothesis(
        tokens=tokens,
        log_probability=found.score,
        finished=len(tokens) == len(found.tokens),
        no_speech_log_probability=None,
        score=found.score,
    )


def _transducer(family: Family) -> Transducer:
    known: Any = family
    return known.transducer


def refuse_options(family: Family, options: DecodingOptions, how: str) -> None:
    """Raises SprachbundError for options that only an attention decoder has; `how` the family writes instead."""
    refused = {
        f"a draft ({options.draft})": options.draft not in (AUTO, NONE),
        "words with times": options.word_timestamps,
        f"min_tokens ({options.min_tokens})": options.min_tokens > 0,
        "a prompt": bool(options.prompt),
    }
    for what, asked in refused.items():
        if asked:
            raise SprachbundError(
                f"the model {family.name} writes {how}, which has no place for {what}; leave it out"
            )
