"""Options of making units, with the published values as defaults."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.util.options import Option

FIRST = 0x4E00
"""The character that stands for the first cluster."""
MOST_CLUSTERS = 0x9FFF - FIRST + 1
"""The block of characters ends there."""
Form = Literal["union", "single"]


class KMeansOptions(BaseModel):
    """Options of scikit-learn's MiniBatchKMeans; k-means++ chooses the first centres.

    Attributes:
        clusters: clusters of k-means, K.
        batch_size: frames of a step of k-means.
        n_init: starts that are tried, of which the best is taken.
        max_no_improvement: steps without improvement after which it ends.
        max_iter: most passes over the frames.
        seed: seed of every draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS), Option("--clusters", metavar="K")] = 2000
    batch_size: Annotated[int, Field(ge=1), Option("--kmeans-batch", metavar="N")] = 10_000
    n_init: Annotated[int, Field(ge=1), Option("--n-init", metavar="N")] = 20
    max_no_improvement: Annotated[int, Field(ge=1), Option("--max-no-improvement", metavar="N")] = 100
    # scikit-learn fails on a single batch
    max_iter: Annotated[int, Field(ge=2), Option("--max-iter", metavar="N")] = 100
    seed: Annotated[int, Field(ge=0), Option("--seed", metavar="N")] = 0


class VocabularyOptions(BaseModel):
    """Options of the SentencePiece models.

    Attributes:
        form: one model for text and one for units in one space of ids (union), or one over both (single).
        unit_pieces: size of the units' part; 0 makes every unit a piece.
        text_pieces: size of the text's part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Annotated[Form, Option("--form")] = "union"
    unit_pieces: Annotated[int, Field(ge=0), Option("--unit-pieces", metavar="N")] = 4000
    text_pieces: Annotated[int, Field(ge=1), Option("--text-pieces", metavar="N")] = 4000

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
    """Options of fitting units.

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
    share: Annotated[float, Field(gt=0, le=1), Option("--share", metavar="X")] = 0.1
    languages: Annotated[tuple[str, ...], Option("--languages", metavar="LANG,…")] = ()
    text_languages: Annotated[tuple[str, ...], Option("--text-languages", metavar="LANG,…")] = ()

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> Self:
        try:
            self.vocabulary.check(self.kmeans.clusters)
        except SprachbundError as error:
            raise ValueError(str(error)) from error  # so that a file that holds it is named
        return self
