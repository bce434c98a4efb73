"""Drafts on disk: one file beside a model's weights, which says itself what it is and to which model it belongs.

`draft.safetensors`, or `draft.NAME.safetensors` where a model has several. The description stands in the head of the
file, so that weights and description cannot be parted, and a foreign model's `config.json` stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from sprachbund.errors import SprachbundError
from sprachbund.models.teaching import Lesson
from sprachbund.nn.decoder import DecoderCache, TextDecoder, allowed_frames
from sprachbund.nn.drafts import MedusaHeads, Parasite
from sprachbund.nn.limits import WIDTH, Layers, Vocabulary, Weight
from sprachbund.util.tensors import load_tensors, save_tensors

DRAFT_FILE = "draft.safetensors"
_PATTERN = "draft*.safetensors"
_KEY = "draft"


class DraftCard(BaseModel):
    """What a draft's file says about it.

    Attributes:
        kind: which sort of draft it is.
        vocabulary_size: of the model it belongs to.
        num_layers: of that model's decoder; 0 where it does not matter.
        width: of that model's decoder; 0 where it does not matter.
        shape: sizes, by the kind.
        acceptance: share of accepted guesses by "source>target", where it was measured.
        training: how it was made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    vocabulary_size: Vocabulary
    num_layers: Layers = 0
    width: Annotated[int, Field(strict=True, ge=0, le=WIDTH.most)] = 0
    shape: dict[str, Any] = {}
    acceptance: dict[str, Weight] = {}
    training: dict[str, Any] = {}


def write_draft(path: Path, card: DraftCard, arrays: Mapping[str, Tensor]) -> None:
    """Write a draft's file; it appears whole or not at all."""
    save_tensors(path, arrays, {"format": "pt", _KEY: card.model_dump_json()})


def read_card(path: Path) -> DraftCard:
    """The description in the head of a draft's file. Raises SprachbundError for a file that is none."""
    try:
        with safe_open(path, "pt") as file:
            head = dict(file.metadata() or {})
        return DraftCard.model_validate_json(head[_KEY])
    except (SafetensorError, OSError) as error:
        raise SprachbundError(f"{path} cannot be read as a draft ({error}); copy it again") from error
    except (KeyError, ValidationError) as error:
        raise SprachbundError(
            f"{path} does not say which kind of draft it is; make it with `sprachbund train`"
        ) from error


def read_draft(path: Path) -> tuple[DraftCard, dict[str, Tensor]]:
    """Description and arrays of a draft's file. Raises SprachbundError for a file that is none."""
    return read_card(path), load_tensors(path)


def find_drafts(directory: Path) -> dict[str, Path]:
    """The drafts in a model directory by name, that in the file's name or else its kind; `DRAFT_FILE` first.

    Raises:
        SprachbundError: a file that is named like a draft and is none.
    """
    found: dict[str, Path] = {}
    for path in sorted(directory.glob(_PATTERN), key=lambda path: (path.name != DRAFT_FILE, path.name)):
        name = path.name.removeprefix("draft").removesuffix(".safetensors").strip(".")
        found[name or read_card(path).kind] = path
    return found


# What a network that guesses ahead says of whole rows at once, as training needs it, beside what its model
# says.
#
# The same for a parasite and for Medusa heads, on a frozen model and on one that is trained along. Shapes:
# R rows, U tokens of a row, B memories, T frames, N guesses, D width, H heads, V vocabulary.

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
