"""A smaller model on disk: saved whole or not at all, with a card that says where it comes from."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from sprachbund.compression.eight_bits import stored_size
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.drafts import find_drafts
from sprachbund.models.packed_linears import read_packed_linears
from sprachbund.models.weights import Bits
from sprachbund.util.files import atomic_directory, copy_file, is_empty


def check_new(out: Path) -> None:
    """Raise a SprachbundError for a place that is taken."""
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise SprachbundError(f"{out} is there already; choose another --out")


def bits_of(directory: Path) -> Bits:
    """Bits that a model's matrices are stored in, packed ones aside; 32 where they differ."""
    if read_packed_linears(directory) is not None:
        return 32
    found = stored_size(directory).bits
    return cast("Bits", found) if found in (8, 16) else 32


def card_of(family: Any, source: Path, name: str, how: dict[str, Any]) -> Card:
    """The card of what was made from the model in `source`; its scores were those of another model."""
    old = Card.read(source) or Card(
        name=source.name,
        source_languages=sorted({s for s, _ in family.pairs()}),
        target_languages=sorted({t for _, t in family.pairs()}),
    )
    training = {**old.training, "made_from": {"model": old.name, **how}}
    return old.model_copy(update={"name": name, "scores": [], "training": training})


def save_smaller(family: Any, source: Path, out: Path, bits: Bits, how: dict[str, Any]) -> None:
    """Write a model that was made from the one in `source` into a new directory.

    Args:
        family: the smaller model.
        source: directory of the larger one.
        out: is to hold it.
        bits: of a weight.
        how: for the card.

    Raises:
        SprachbundError: the place is taken, or the family has no place for so few bits.
    """
    save = import_module(f"{type(family).__module__.rpartition('.')[0]}.directory").save
    card = card_of(family, source, out.name, how)
    write_whole(out, lambda draft: save(family, draft, bits=bits, card=card))


def write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """Let a new directory be written, which is there whole or not at all.

    Raises:
        SprachbundError: the place is taken.
    """
    check_new(out)
    with atomic_directory(out) as draft:
        write(draft)


def copy_drafts(source: Path, out: Path) -> list[str]:
    """Copy the drafts beside a model to one of the same depth and vocabulary; their names."""
    drafts = find_drafts(source)
    for path in drafts.values():
        copy_file(path, out / path.name)
    return list(drafts)
