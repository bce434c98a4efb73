"""The card of a model: its languages, training data, licences and scores."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sprachbund.util.files import read_model, write_json

CARD_FILE = "card.json"


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
        training: recipe, steps, data seen.
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

    @classmethod
    def read(cls, directory: Path) -> "Card | None":
        """The card in a model directory, None when there is none. Raises SprachbundError for a broken one."""
        path = directory / CARD_FILE
        return read_model(path, cls, advice="mend or delete it") if path.exists() else None

    def write(self, directory: Path) -> None:
        """Write the card into a model directory."""
        write_json(directory / CARD_FILE, self.model_dump())
