"""Drafts on disk: one file beside a model's weights, which says itself what it is and to which model it belongs.

`draft.safetensors`, or `draft.NAME.safetensors` where a model has several. The description stands in the head of the
file, so that weights and description cannot be parted, and a foreign model's `config.json` stays as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sprachbund.errors import SprachbundError
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
