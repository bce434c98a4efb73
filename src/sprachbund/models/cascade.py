"""A cascade: a recogniser writes down what is said, and a translator of texts brings that into other languages.

Any model that transcribes can be the first half, and any that reads texts the second. To searches, commands and the
service a cascade is the recogniser with the capability `translator`, and with the pairs of both; what becomes of a
transcript stands in `sprachbund.decoding.transcripts`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Family, Translator
from sprachbund.models.wrapped import WrappedFamily
from sprachbund.text.languages import described, parse_language

RECOGNISER, TRANSLATOR = "recogniser", "translator"
"""Folders of the halves in a cascade that was saved."""


class CascadeConfig(BaseModel):
    """config.json of a cascade's directory.

    Attributes:
        model_type: model type of every cascade.
        recogniser: the first half: a folder, relative to this one or not, a name on the hub, an alias, or "bundled".
        translator: the second half, likewise.
    """

    model_config = ConfigDict(extra="forbid")

    model_type: Literal["cascade"] = "cascade"
    recogniser: str = Field(min_length=1)
    translator: str = Field(min_length=1)

    def halves(self, directory: Path) -> tuple[str | Path, str | Path]:
        """Recogniser and translator, as they can be located; folders are looked for beside config.json first.

        Args:
            directory: directory of config.json.
        """
        first, second = (
            inner if (inner := directory / name).is_dir() else name
            for name in (self.recogniser, self.translator)
        )
        return first, second


class Cascade(WrappedFamily):
    """A recogniser followed by a translator.

    Args:
        recogniser: transcribes.
        translator: reads texts.
        directories: directories of the two, in which their drafts and packed weights belong; None where they lie in
            none.

    Raises:
        SprachbundError: the first transcribes nothing, the second reads no text, or they have no language in common.
    """

    def __init__(
        self, recogniser: Family, translator: Family, directories: tuple[Path, Path] | None = None
    ) -> None:
        super().__init__(recogniser)
        self.recogniser, self.translator, self.directories = recogniser, translator, directories
        if recogniser.capabilities.translator is not None:
            raise SprachbundError(
                f"the recogniser is a cascade itself; give its own halves, the recogniser and {translator.name}"
            )
        if translator.capabilities.text_input is None:
            raise SprachbundError(
                f"the model {translator.name} turns speech into text, and cannot be the second half of a cascade; "
                "take a model that reads text, such as facebook/m2m100_418M"
            )
        heard = sorted({source for source, target in recogniser.pairs() if source == target})
        if not heard:
            raise SprachbundError(
                f"the model {recogniser.name} translates and does not transcribe, and cannot be the first half of a "
                "cascade; take a recogniser, such as whisper-small"
            )
        read = {source for source, _ in translator.pairs()}
        if translator.capabilities.text_encoder is not None:  # it hears languages that it cannot read
            read &= {target for _, target in translator.pairs()}
        self._languages = {tag: own for tag in heard if (own := _tag_among(tag, read)) is not None}
        if not self._languages:
            raise SprachbundError(
                f"the recogniser {recogniser.name} transcribes {described(heard)}, and the translator "
                f"{translator.name} reads {described(read)}: none in common; take halves that share a language"
            )
        self._pairs = frozenset((tag, tag) for tag in heard) | frozenset(
            (tag, target)
            for tag, own in self._languages.items()
            for source, target in translator.pairs()
            if source == own and target != own
        )

    @property
    def name(self) -> str:
        """Name of the family; the halves have names of their own."""
        return "cascade"

    @property
    def capabilities(self) -> Capabilities:
        """The recogniser's, with a translator; texts are read by the translator."""
        return replace(
            self.recogniser.capabilities,
            translator=Translator(family=self.translator, languages=self._languages),
            text_input=self.translator.capabilities.text_input,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Transcription of all that is heard, and what the translator makes of it."""
        return self._pairs


def _tag_among(tag: str, known: set[str]) -> str | None:
    """The one of `known` tags that means the same language; of several scripts the one that is usual for it."""
    import langcodes

    likely = langcodes.Language.get(tag).maximize()
    for candidate in (tag, f"{likely.language}-{likely.script}"):
        try:
            return parse_language(candidate, known)
        except SprachbundError:
            continue
    return None
