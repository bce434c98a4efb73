"""What a network that guesses ahead says of whole rows at once, as training needs it, beside what its model says.

The same for a parasite and for Medusa heads, on a frozen model and on one that is trained along. Shapes: R rows,
U tokens of a row, B memories, T frames, N guesses, D width, H heads, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.models.teaching import Lesson
from sprachbund.nn.decoder import DecoderCache, TextDecoder, allowed_frames
from sprachbund.nn.medusa import MedusaHeads
from sprachbund.nn.parasite import Parasite

Guesser = Parasite | MedusaHeads
_LATER = 0.8
"""Weight of a Medusa head against that of the one before it (arXiv 2401.10774, section 2.2.1)."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a decoder made of a lesson.

    Attributes:
        hidden: (R, U, D) behind its last norm.
        kept: every layer's self-attention keys and values (R, H, U, D/H), as a cache would hold them.
    """

    hidden: Tensor
    kept: dict[int, tuple[Tensor, Tensor]]

    def logits(self, decoder: TextDecoder, places: Tensor) -> Tensor:
        """The decoder's logits (N, V) at `places`, boolean (R, U)."""
        return decoder.outputs(self.hidden[places])


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Guesses at some tokens of a lesson.

    Attributes:
        logits: (N, V).
        places: boolean (R, U), where the decoder itself says what these tokens are; N of them.
        weight: of these guesses in a loss.
    """

    logits: Tensor
    places: Tensor
    weight: float = 1.0


def read(decoder: TextDecoder, lesson: Lesson) -> Pass:
    """Run the decoder over a lesson, with gradients if they are on."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    memory = lesson.memory
    hidden = decoder(lesson.tokens, memory.states, memory.num_frames, lesson.route, kept)
    return Pass(hidden=decoder.norm(hidden), kept=kept)


def guess(
    guesser: Guesser, decoder: TextDecoder, lesson: Lesson, seen: Pass, *, detach_kv: bool = False
) -> list[Guess]:
    """All that a guesser says of a lesson, one entry for every distance that it looks ahead.

    Args:
        guesser: made for the decoder.
        decoder: that it guesses for.
        lesson: which the decoder was run over.
        seen: what came of it.
        detach_kv: keep a parasite's gradients from the decoder's keys and values.
    """
    if isinstance(guesser, MedusaHeads):
        return _medusa(guesser, decoder, lesson, seen)
    return [_parasite(guesser, decoder, lesson, seen, detach_kv)]


def parasite_states(
    parasite: Parasite, decoder: TextDecoder, lesson: Lesson, seen: Pass, *, detach_kv: bool = False
) -> Tensor:
    """A parasite's hidden states (R, U, D) at every place of a lesson."""
    tokens, memory = lesson.tokens, lesson.memory
    pairs = [seen.kept[i] for i in sorted(seen.kept)]
    cache = DecoderCache(
        self_keys=[keys for keys, _ in pairs],
        self_values=[values for _, values in pairs],
        cross_keys=[],
        cross_values=[],
        memory_allowed=None,
        lengths=tokens.new_full((len(tokens),), tokens.shape[1]),
    )
    cross = parasite.remember(memory.states, allowed_frames(memory.states, memory.num_frames))
    # Keys of padding are seen by padding alone, which does not count.
    valid = torch.ones_like(lesson.counted)
    return parasite.teacher_forced(decoder, tokens, cache, cross, valid=valid, detach_kv=detach_kv)


def _parasite(parasite: Parasite, decoder: TextDecoder, lesson: Lesson, seen: Pass, detach_kv: bool) -> Guess:
    hidden = parasite_states(parasite, decoder, lesson, seen, detach_kv=detach_kv)
    # Nothing is guessed behind a prompt: its last token is never the newest one when a guess is made.
    order = torch.arange(hidden.shape[1], device=hidden.device)
    places = lesson.counted & (order >= lesson.prompts[:, None])
    return Guess(logits=parasite.logits(decoder, hidden[places]), places=places)


def _medusa(heads: MedusaHeads, decoder: TextDecoder, lesson: Lesson, seen: Pass) -> list[Guess]:
    counted, found = lesson.counted, []
    for k, stack in enumerate(heads.stacks):
        ahead = k + 1
        chosen = counted[:, :-ahead] & counted[:, ahead:]
        logits = decoder.outputs(stack(seen.hidden[:, :-ahead][chosen]))
        places = F.pad(chosen, (ahead, 0))[:, : counted.shape[1]]  # a row may be shorter than that
        found.append(Guess(logits=logits, places=places, weight=_LATER**k))
    return found
