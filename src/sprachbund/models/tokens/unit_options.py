"""How units are made: every number of it, with the published values as defaults."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sprachbund.errors import SprachbundError

FIRST = 0x4E00
"""The character that stands for the first cluster."""
MOST_CLUSTERS = 0x9FFF - FIRST + 1
"""The block of characters ends there."""
Form = Literal["union", "single"]


class KMeansOptions(BaseModel):
    """Of scikit-learn's MiniBatchKMeans; k-means++ chooses the first centres.

    Attributes:
        clusters: K.
        batch_size: frames of a step.
        n_init: first centres tried; the best are taken.
        max_no_improvement: steps without improvement after which it ends.
        max_iter: passes over the frames at most.
        seed: of every draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS)] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 10_000
    n_init: Annotated[int, Field(ge=1)] = 20
    max_no_improvement: Annotated[int, Field(ge=1)] = 100
    max_iter: Annotated[int, Field(ge=2)] = 100  # scikit-learn fails on a single batch
    seed: Annotated[int, Field(ge=0)] = 0


class VocabularyOptions(BaseModel):
    """Of the SentencePiece models.

    Attributes:
        form: `union`, one model for text and one for units in one space of ids; or `single`, one over both.
        unit_pieces: size of the units' part; 0 makes every unit a piece.
        text_pieces: size of the text's part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form = "union"
    unit_pieces: Annotated[int, Field(ge=0)] = 4000
    text_pieces: Annotated[int, Field(ge=1)] = 4000

    def check(self, clusters: int) -> None:
        """Raises SprachbundError when the units' part cannot hold every unit."""
        if self.form == "single" and not self.unit_pieces:
            raise SprachbundError("one model for both needs unit pieces; give --unit-pieces or --form union")
        if 0 < self.unit_pieces <= clusters:
            raise SprachbundError(
                f"{self.unit_pieces} unit pieces cannot hold {clusters} clusters and the unknown; "
                f"give --unit-pieces {2 * clusters}, or 0 for a piece each"
            )


class FitOptions(BaseModel):
    """How units are found.

    Attributes:
        kmeans: see `KMeansOptions`.
        vocabulary: see `VocabularyOptions`.
        share: share of each corpus's utterances that k-means sees, chosen by their ids.
        languages: languages of the speech taken; all if none is named.
        text_languages: languages of the texts that the vocabulary is made of, those with a token; all if none is named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kmeans: KMeansOptions = KMeansOptions()
    vocabulary: VocabularyOptions = VocabularyOptions()
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    languages: tuple[str, ...] = ()
    text_languages: tuple[str, ...] = ()


def checked(options: dict[str, object]) -> FitOptions:
    """Options from plain values. Raises SprachbundError, naming the value, for one that cannot be."""
    try:
        made = FitOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-")
        raise SprachbundError(f"{name} is {first['input']!r}: {first['msg'].lower()}") from error
    made.vocabulary.check(made.kmeans.clusters)
    return made
