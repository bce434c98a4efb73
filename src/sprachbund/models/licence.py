"""Licences of weights, which are printed before a model is put to use."""

import re
from dataclasses import dataclass
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.cascade import CascadeConfig
from sprachbund.models.catalogue import find_checkpoint
from sprachbund.models.hub import PAGE, family_of, locate
from sprachbund.util.files import read_model

_SHARE_ALIKE = re.compile(r"\bsa\b|share-?\s?alike|\b[al]?gpl")
_NO_COMMERCE = re.compile(r"\bnc\b|non-?commercial|\bresearch\b")


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a model's weights.

    Attributes:
        model: model that has the weights, as the user named it.
        name: name of the licence, as the model's card or page has it; empty where none is stated.
        commercial: False where the licence is known to forbid commercial use.
    """

    model: str
    name: str
    commercial: bool

    @property
    def binding(self) -> bool:
        """Whether it is known to bind the licence of models that are made from this one."""
        return not self.commercial or _SHARE_ALIKE.search(self.name.lower()) is not None

    def __str__(self) -> str:
        if not self.name:
            return "not stated; see where it came from"
        return self.name if self.commercial else f"{self.name}, no commercial use"


def licences(path_or_id: str | Path, then: str | Path | None = None) -> tuple[Licence, ...]:
    """Licences of the weights of a model; of a cascade, those of both halves.

    Args:
        path_or_id: as of `sprachbund.load`. Of a public model that was not downloaded, the licence is that of
            `sprachbund.models.catalogue`.
        then: as of `sprachbund.load`.

    Raises:
        SprachbundError: its card is broken.
    """
    if then is not None:
        return *licences(path_or_id), *licences(then)
    try:
        directory = locate(path_or_id, offline=True)
    except SprachbundError:  # not here
        return (_licence(str(path_or_id), None),)
    if family_of(directory) == "cascade":
        halves = read_model(directory / "config.json", CascadeConfig).halves(directory)
        return tuple(licence for half in halves for licence in licences(half))
    return (_licence(str(path_or_id), directory),)


def licences_owed(path_or_id: str | Path) -> tuple[Licence, ...]:
    """Licences of the weights of a model, and of those that it was trained on from, as its card has them.

    Args:
        path_or_id: as of `licences`. Errors likewise.
    """
    own = [one for one in licences(path_or_id) if one.name]
    try:
        card = Card.read(locate(path_or_id, offline=True))
    except SprachbundError:  # not here
        card = None
    names = str(card.training.get("start_licence", "")).split(" and ") if card is not None else []
    earlier = [
        Licence(model=str(path_or_id), name=name, commercial=_NO_COMMERCE.search(name.lower()) is None)
        for name in names
        if name and name not in {one.name for one in own}
    ]
    return (*own, *earlier)


def _licence(model: str, directory: Path | None) -> Licence:
    """From its own card, the catalogue, or the page of its repository, in this order."""
    known, card = find_checkpoint(model), None if directory is None else Card.read(directory)
    if card is not None and card.licence:
        name = card.licence
    elif known is not None:
        name = known.licence
    else:
        name = "" if directory is None else _on_page(directory / PAGE)
    forbidden = _NO_COMMERCE.search(name.lower()) is not None or (known is not None and not known.commercial)
    return Licence(model=model, name=name, commercial=not forbidden)


def _on_page(path: Path) -> str:
    """The licence in the head of a repository's page; empty where there is none, or the head cannot be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        head = metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    stated = head.get("license_name") or head.get("license") or ""
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
