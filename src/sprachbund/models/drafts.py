"""Drafts on disk, and the logits of draft networks in training.

A draft is one file beside a model's weights: `draft.safetensors`, or `draft.NAME.safetensors` where a model has
several. The description stands in the head of the file, so that weights and description cannot be parted, and the
`config.json` of a model from elsewhere stays as it is. Draft networks are run on whole rows with teacher forcing; the
code is the same for a parasite and for Medusa heads, on a frozen model and on one that is trained along. Shapes: R
rows, U tokens of a row, B memories, T frames, N predictions, D width, H heads, V vocabulary.
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
from sprachbund.models.teacher_forcing import DecoderBatch
from sprachbund.nn.decoder import DecoderCache, TextDecoder, allowed_frames
from sprachbund.nn.drafts import MedusaHeads, Parasite
from sprachbund.nn.limits import WIDTH, Layers, Positions, Vocabulary, Weight
from sprachbund.util.tensors import load_tensors, save_tensors

DRAFT_FILE = "draft.safetensors"
DRAFT_FILES = "draft*.safetensors"
_KEY = "draft"


class DraftCard(BaseModel):
    """Description of a draft, in its file.

    Attributes:
        kind: name of the kind of draft.
        vocabulary_size: vocabulary size of the model it belongs to.
        num_layers: layers of that model's decoder; 0 where it does not matter.
        width: width of that model's decoder; 0 where it does not matter.
        shape: sizes, by the kind.
        acceptance: share of accepted draft tokens by "source>target", where it was measured.
        typical_length: median tokens of the texts that it was measured on; None where it was not.
        training: facts about its training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    vocabulary_size: Vocabulary
    num_layers: Layers = 0
    width: Annotated[int, Field(strict=True, ge=0, le=WIDTH.most)] = 0
    shape: dict[str, Any] = {}
    acceptance: dict[str, Weight] = {}
    typical_length: Positions | None = None
    training: dict[str, Any] = {}


def write_draft(path: Path, card: DraftCard, arrays: Mapping[str, Tensor]) -> None:
    """Write a draft's file; it appears whole or not at all.

    Args:
        path: path of the file.
        card: its description.
        arrays: weights of the draft by name.
    """
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
    drafts: dict[str, Path] = {}
    for path in sorted(directory.glob(DRAFT_FILES), key=lambda path: (path.name != DRAFT_FILE, path.name)):
        name = path.name.removeprefix("draft").removesuffix(".safetensors").strip(".")
        drafts[name or read_card(path).kind] = path
    return drafts


# Draft networks in training.

DraftNetwork = Parasite | MedusaHeads
_LATER = 0.8
"""Weight of a Medusa head against that of the one before it (arXiv 2401.10774, section 2.2.1)."""


@dataclass(frozen=True, kw_only=True)
class DecoderOutput:
    """Output of a decoder for a decoder batch.

    Attributes:
        hidden: (R, U, D) behind its last norm.
        kept: every layer's self-attention keys and values (R, H, U, D/H), as a cache would hold them.
    """

    hidden: Tensor
    kept: dict[int, tuple[Tensor, Tensor]]

    def logits(self, decoder: TextDecoder, positions: Tensor) -> Tensor:
        """The decoder's logits (N, V) at `positions`, boolean (R, U)."""
        return decoder.outputs(self.hidden[positions])


@dataclass(frozen=True, kw_only=True)
class DraftLogits:
    """Logits of a draft network for some tokens of a decoder batch.

    Attributes:
        logits: (N, V).
        positions: boolean (R, U), where the decoder itself predicts these tokens; N of them.
        weight: weight of these tokens in a loss.
    """

    logits: Tensor
    positions: Tensor
    weight: float = 1.0


def run_decoder(decoder: TextDecoder, decoder_batch: DecoderBatch) -> DecoderOutput:
    """Run the decoder over a decoder batch, with gradients if they are on."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    memory = decoder_batch.memory
    hidden = decoder(decoder_batch.tokens, memory.states, memory.num_frames, decoder_batch.route, kept)
    return DecoderOutput(hidden=decoder.norm(hidden), kept=kept)


def draft_logits(
    draft_network: DraftNetwork,
    decoder: TextDecoder,
    decoder_batch: DecoderBatch,
    seen: DecoderOutput,
    *,
    detach_kv: bool = False,
) -> list[DraftLogits]:
    """Logits of a draft network, one entry for every distance that it looks ahead.

    Args:
        draft_network: draft network made for the decoder.
        decoder: decoder of the model.
        decoder_batch: decoder batch of R rows.
        seen: output of the decoder for them.
        detach_kv: keep a parasite's gradients from the decoder's keys and values.
    """
    if isinstance(draft_network, MedusaHeads):
        return _medusa(draft_network, decoder, decoder_batch, seen)
    return [_parasite(draft_network, decoder, decoder_batch, seen, detach_kv)]


def parasite_states(
    parasite: Parasite,
    decoder: TextDecoder,
    decoder_batch: DecoderBatch,
    seen: DecoderOutput,
    *,
    detach_kv: bool = False,
) -> Tensor:
    """A parasite's hidden states (R, U, D) at every position of a decoder batch.

    Args:
        parasite: parasite made for the decoder.
        decoder: decoder of the model.
        decoder_batch: decoder batch of R rows of U tokens.
        seen: output of the decoder for them.
        detach_kv: keep gradients from the decoder's keys and values.
    """
    tokens, memory = decoder_batch.tokens, decoder_batch.memory
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
    valid = torch.ones_like(decoder_batch.loss_mask)
    return parasite.teacher_forced(decoder, tokens, cache, cross, valid=valid, detach_kv=detach_kv)


def _parasite(
    parasite: Parasite,
    decoder: TextDecoder,
    decoder_batch: DecoderBatch,
    seen: DecoderOutput,
    detach_kv: bool,
) -> DraftLogits:
    hidden = parasite_states(parasite, decoder, decoder_batch, seen, detach_kv=detach_kv)
    # No token is drafted right behind a prompt: its last token is never the newest one when the draft runs.
    order = torch.arange(hidden.shape[1], device=hidden.device)
    positions = decoder_batch.loss_mask & (order >= decoder_batch.prompts[:, None])
    return DraftLogits(logits=parasite.logits(decoder, hidden[positions]), positions=positions)


def _medusa(
    heads: MedusaHeads, decoder: TextDecoder, decoder_batch: DecoderBatch, seen: DecoderOutput
) -> list[DraftLogits]:
    loss_mask, predictions = decoder_batch.loss_mask, []
    for k, stack in enumerate(heads.stacks):
        ahead = k + 1
        chosen = loss_mask[:, :-ahead] & loss_mask[:, ahead:]
        logits = decoder.outputs(stack(seen.hidden[:, :-ahead][chosen]))
        positions = F.pad(chosen, (ahead, 0))[:, : loss_mask.shape[1]]  # a row may be shorter than that
        predictions.append(DraftLogits(logits=logits, positions=positions, weight=_LATER**k))
    return predictions
