"""The card of a model: its languages, training data, licences and scores."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from sprachbund.util.files import read_model, write_json

CARD_FILE = "card.json"
PAIRS = "pairs"
"""Key of `Card.training`: [source, target] languages in the training data; the same twice are transcription."""


class Card(BaseModel):
    """Facts to know before a model is used.

    Attributes:
        name: name of the model.
        description: one or two sentences.
        licence: licence of the weights.
        source_languages: BCP-47 tags it hears.
        target_languages: BCP-47 tags it writes.
        data: one entry for each corpus: name, licence, attribution, hours.
        limits: limits of its knowledge and abilities.
        scores: measured scores, each with its conditions.
        bits: bits of a stored weight.
        training: recipe, steps, data seen, and `PAIRS`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    licence: str = ""
    source_languages: list[str] = []
    target_languages: list[str] = []
    data: list[dict[str, Any]] = []
    limits: list[str] = []
    scores: list[dict[str, Any]] = []
    bits: int = 32
    training: dict[str, Any] = {}

    @field_validator("training")
    @classmethod
    def _check_pairs(cls, training: dict[str, Any]) -> dict[str, Any]:
        pairs = training.get(PAIRS, [])
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(tag, str) for tag in pair)
            for pair in pairs
        ):
            raise ValueError(f"{PAIRS} are no list of [source, target]")
        return training

    @property
    def taught_pairs(self) -> frozenset[tuple[str, str]] | None:
        """Pairs (source, target) of languages in its training data; None where there is no record of them."""
        pairs = self.training.get(PAIRS)
        return None if pairs is None else frozenset((source, target) for source, target in pairs)

    def pairs_with(self, more: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """The record of a model that is trained on from this one, for its `training`; empty where this one has none.

        Args:
            more: (source, target) languages of the further data.
        """
        earlier = self.taught_pairs
        return {} if earlier is None else {PAIRS: sorted(map(list, {*earlier, *more}))}

    @classmethod
    def read(cls, directory: Path) -> "Card | None":
        """The card in a model directory, None when there is none. Raises SprachbundError for a broken one."""
        path = directory / CARD_FILE
        return read_model(path, cls, advice="mend or delete it") if path.exists() else None

    def write(self, directory: Path) -> None:
        """Write the card into a model directory."""
        write_json(directory / CARD_FILE, self.model_dump())
